"""What is known of a picture beside its pixels, made fit for a prompt: metadata by name, and the text that was read."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from krea_data.captions.clean import plain_text
from krea_data.rows import Row

__all__ = ["clean_meta", "metadata", "metadata_text", "read_texts", "texts_text"]

_TEXT_LETTERS = 300  # of one field
_LIST_ITEMS = 20
_READ_LETTERS = 2000


def clean_meta(meta: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The metadata with its texts and lists of texts cleaned, and how many characters were taken away."""
    taken = 0
    clean: dict[str, Any] = {}
    for key, value in meta.items():
        if isinstance(value, str):
            value, count = plain_text(value) if _odd(value) else (value, 0)
            taken += count
        elif isinstance(value, list | tuple):
            pairs = [plain_text(one) if isinstance(one, str) and _odd(one) else (one, 0) for one in value]
            value, taken = [one for one, _ in pairs], taken + sum(count for _, count in pairs)
        clean[key] = value
    return clean, taken


def _odd(text: str) -> bool:
    return plain_text(text)[1] > 0


def metadata(meta: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """The fields that have something to say, cut to a length that suits a prompt."""
    clean, _ = clean_meta(meta)
    found: dict[str, Any] = {}
    for name in fields:
        value = clean.get(name)
        if isinstance(value, str) and value.strip():
            found[name] = value[:_TEXT_LETTERS]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
        elif isinstance(value, list) and value:
            found[name] = [str(one)[:_TEXT_LETTERS] for one in value[:_LIST_ITEMS]]
        elif isinstance(value, Mapping) and value:
            found[name] = {str(key): str(one)[:_TEXT_LETTERS] for key, one in list(value.items())[:_LIST_ITEMS]}
    return found


def metadata_text(meta: Mapping[str, Any], fields: Iterable[str]) -> str:
    """The same as JSON for a prompt, or "none"."""
    found = metadata(meta, fields)
    return json.dumps(found, ensure_ascii=False) if found else "none"


def read_texts(row: Row, task: str = "ocr", least_confidence: float = 0.0) -> list[str]:
    """The texts that were read in the picture, in reading order; none where the task has not kept the row."""
    if not row.kept_by(task):
        return []
    return [one["text"] for one in row.results[task].value.get("texts", ()) if one["confidence"] >= least_confidence]


def texts_text(texts: Iterable[str]) -> str:
    """Texts as JSON for a prompt, cut where they are many, or "none"."""
    kept: list[str] = []
    for text in texts:
        if sum(map(len, kept)) + len(text) > _READ_LETTERS:
            break
        kept.append(text)
    return json.dumps(kept, ensure_ascii=False) if kept else "none"
