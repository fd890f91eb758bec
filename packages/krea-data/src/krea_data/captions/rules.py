"""Captions by rule, without a model: from label, tags and measured colours, or from a long caption if that is all."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from krea_data.captions.records import record
from krea_data.tasks import caption as by_label
from krea_data.tasks.colour import Palette

__all__ = ["from_label", "from_long", "has_label"]

_CLAUSE = re.compile(r"[,;:.!?]\s|\s(?:with|while|against|and|that|which|who|set|on|in|under|beside|near)\s")
_SENTENCE = re.compile(r".+?[.!?](?=\s|\Z)", re.DOTALL)
_WORD = re.compile(r"[^\W\d_][^\W_]+")
_SMALL_TEXT = """
the and with its from that this there some one two are has have been being into onto over under behind beside
near above below around across while which who whose where small large big very slightly also each both other
another appears seen stands set against left right top bottom centre center middle side front back is in on of
at to by for as an it his her their out up down along through between
"""
_SMALL = frozenset(_SMALL_TEXT.split())
_SHORT_WORDS, _MEDIUM_WORDS, _TAGS = 10, 30, 12


def has_label(meta: Mapping[str, Any]) -> bool:
    """Whether the metadata names the picture."""
    return bool(str(meta.get("label") or "").strip())


def from_label(meta: Mapping[str, Any], tints: Palette, texts: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """All forms by the rules of `krea_data.tasks.caption`; short, medium and long are word for word what it writes."""
    words = by_label.short(meta)
    full = "label, style, group, tags, measured colours"
    stated = [str(tag) for tag in meta.get("tags", ())]
    tags = _once([words.lower(), *(str(meta[key]).lower() for key in ("style",) if meta.get(key)), *stated])
    structure: dict[str, Any] = {"subject": words, "objects": stated[:_TAGS], "colours": list(tints.colours)}
    structure |= {"style": str(meta["style"])} if meta.get("style") else {}
    structure |= {"setting": f"on {tints.background}"} if tints.background else {}
    return {
        "short": record("short", words, "label"),
        "medium": record("medium", by_label.medium(meta), "label, style"),
        "long": record("long", by_label.long(meta, tints), full),
        "tags": record("tags", ", ".join([*tags, *tints.colours][:_TAGS]), "label, style, tags, measured colours"),
        "structured": record("structured", _json(structure, texts), full),
    }


def from_long(text: str, tints: Palette, texts: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """All shorter forms of a long caption: its first words, its first sentence, its words as tags."""
    first = _SENTENCE.match(text)
    sentence = first.group(0) if first else text
    clause = _CLAUSE.split(sentence, maxsplit=1)[0].rstrip(" .,;:!?")
    medium = " ".join(sentence.split()[:_MEDIUM_WORDS]).rstrip(" ,;:")
    short = " ".join(clause.split()[:_SHORT_WORDS])
    tags = _once([word.lower() for word in _WORD.findall(text) if word.lower() not in _SMALL])[:_TAGS]
    structure = {"subject": short, "objects": tags, "colours": list(tints.colours)}
    source = "rules on the long caption"
    return {
        "short": record("short", short, source),
        "medium": record("medium", medium, source),
        "tags": record("tags", ", ".join(tags) or short, source),
        "structured": record("structured", _json(structure, texts), f"{source}, measured colours"),
    }


def _once(words: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(word for word in words if word))


def _json(structure: Mapping[str, Any], texts: Sequence[str]) -> str:
    return json.dumps({**structure, **({"text": list(texts)} if texts else {})}, ensure_ascii=False)
