"""Pairs for supervised training: what a person might have typed, and the long caption it should become.

The short side is made from the long one, so the long one is always true of the picture; what was left out is recorded.
`shorten` works by rules alone, `shorten_with` asks a language model and keeps only what the caption supports.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from krea_expander.expand import parse
from krea_expander.gates import check
from krea_expander.interfaces import LanguageModel, Message
from krea_expander.texts import section

__all__ = ["PERSONAS", "Pair", "Persona", "pairs", "shorten", "shorten_with"]

Persona = Literal["plain", "keywords", "request"]
PERSONAS: tuple[Persona, ...] = ("plain", "keywords", "request")

_OPENER = re.compile(
    r"\A(?:(?:this|the)\s+(?:image|picture|photo|photograph|illustration|drawing)\s+"
    r"(?:shows|depicts|features|is of)\s+|"
    r"(?:an?|the)\s+(?:\w+\s+){0,2}?(?:image|picture|photo|photograph|illustration|drawing|painting|rendering|view)\s+"
    r"(?:of|showing|depicting|that shows)\s+)",
    re.IGNORECASE,
)
_SPLIT = re.compile(
    r"(\s*[;,.]\s+|\s+(?=(?:with|in|on|at|under|against|beside|behind|near|while|wearing|holding|surrounded|set|lit|"
    r"standing|sitting|featuring)\b))"
)
_SMALL = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "and",
        "or",
        "with",
        "in",
        "on",
        "at",
        "to",
        "by",
        "for",
        "from",
        "is",
        "are",
        "its",
        "it",
        "as",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A short prompt, the caption it stands for, and the parts of the caption that it leaves open."""

    short: str
    caption: str
    omitted: tuple[str, ...]
    persona: Persona
    source: Literal["rules", "model"]


def shorten(caption: str, *, persona: Persona = "plain", seed: int = 0) -> Pair:
    """Keep the head of the caption and at most one further part; every other part is recorded as omitted."""
    draw = random.Random(f"{seed}/{persona}/{caption}")
    text = " ".join(caption.split()).rstrip(" .")
    if not text:
        raise ValueError("an empty caption has no short form; leave the row out")
    opener = _OPENER.match(text)
    body = text[opener.end() :] if opener else text
    head, *rest = [part.strip(" ,;.") for part in _SPLIT.split(body) if part.strip(" ,;.")] or [body]
    kept = [head]
    if rest and draw.random() < 0.5:
        kept.append(rest.pop(draw.randrange(len(rest))))
    omitted = tuple(([opener.group().strip()] if opener else []) + rest)
    return Pair(short=_voice(kept, persona, draw), caption=caption, omitted=omitted, persona=persona, source="rules")


def shorten_with(
    model: LanguageModel, caption: str, n: int = 1, *, persona: Persona = "plain", seed: int = 0
) -> list[Pair]:
    """Up to `n` pairs from a language model: shorter than the caption, in its words, each different from the others.

    Fewer come back if the model invents or repeats; LanguageModelError passes through.
    """
    found: dict[str, Pair] = {}
    for answer in model(_messages(caption, persona), n, seed):
        short = (parse(answer) or "").strip()
        if not short or check(short, caption) or not _is_supported(short, caption):
            continue
        said = set(_content(short))
        parts = [part.strip(" ,;.") for part in _SPLIT.split(caption) if part.strip(" ,;.")]
        omitted = tuple(part for part in parts if _content(part) and not said & set(_content(part)))
        pair = Pair(short=short, caption=caption, omitted=omitted, persona=persona, source="model")
        found.setdefault(_key(short), pair)
    return list(found.values())


def pairs(captions: Iterable[str], *, seed: int = 0) -> Iterator[Pair]:
    """One pair by rules for each caption, personas mixed, without repetitions and without pairs that omit nothing."""
    seen: set[str] = set()
    for caption in captions:
        if not caption.strip():
            continue
        digest = hashlib.blake2b(f"{seed}/{caption}".encode(), digest_size=4).digest()
        pair = shorten(caption, persona=PERSONAS[int.from_bytes(digest) % len(PERSONAS)], seed=seed)
        key = _key(pair.short)
        if pair.omitted and key not in seen and key != _key(caption):
            seen.add(key)
            yield pair


def _voice(kept: Sequence[str], persona: Persona, draw: random.Random) -> str:
    plain = " ".join(kept)
    bare = re.sub(r"\A(?:an?|the)\s+", "", plain, flags=re.IGNORECASE)
    if persona == "request":
        return draw.choice(["draw me {}", "can you make {}?", "i want {}", "{} please"]).format(_small(plain))
    if persona == "keywords":
        return ", ".join(re.sub(r"\A(?:an?|the|with|in|on|at)\s+", "", part, flags=re.IGNORECASE) for part in kept)
    return bare


def _small(text: str) -> str:
    """Without the capital of a sentence's first word, if it is an article."""
    return text[0].lower() + text[1:] if re.match(r"(?:An?|The)\s", text) else text


def _messages(caption: str, persona: Persona) -> list[Message]:
    return [
        {"role": "system", "content": f"{section('shorten', 'system')}\n\n{section('shorten', persona)}"},
        {"role": "user", "content": section("shorten", "caption").replace("{caption}", caption)},
    ]


def _is_supported(short: str, caption: str) -> bool:
    """Clearly shorter, and at least six in ten of its words come from the caption."""
    words, known = _content(short), set(_content(caption))
    if not words or len(words) > 0.7 * len(_content(caption)):
        return False
    return 10 * sum(word in known for word in words) >= 6 * len(words)


def _content(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+", text.lower())
    return [word.removesuffix("s") if len(word) > 3 else word for word in words if word not in _SMALL]


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
