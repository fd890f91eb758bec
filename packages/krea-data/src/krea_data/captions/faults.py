"""What makes a model's caption unusable: it refuses, rambles, repeats itself, or quotes text that nobody has read."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from krea_data.captions.forms import Form

__all__ = ["fault", "quoted", "structured_fault", "unread"]

_REFUSAL = re.compile(
    r"\A\W*(?:i['\u2019]?m (?:sorry|unable|not able)|i am (?:sorry|unable|not able|an ai)|sorry,|i apologi[sz]e|"
    r"i (?:can['\u2019]?t|cannot|can not|won['\u2019]?t|will not|don['\u2019]?t (?:see|have))|as an? (?:ai|language)|"
    r"unfortunately,? i|i['\u2019]?d be happy to|please (?:provide|upload|share)|no image (?:was|is|has))",
    re.IGNORECASE,
)
_MEDIUM = r"(?:\w+ )?(?:image|picture|photo(?:graph)?|illustration|drawing|painting|scene)"
_STOCK = re.compile(
    rf"\A\W*(?:th(?:e|is) {_MEDIUM}(?:,| (?:shows|depicts|features|displays|portrays|presents|contains|captures|is)\b)|"
    rf"in th(?:e|is) {_MEDIUM}(?:,| we\b| you\b| there\b)|an? (?:image|picture) (?:of|showing)\b|"
    r"here(?:['\u2019]s| is| are)\b|(?:sure|certainly)[,!.:]|caption\s*:)",
    re.IGNORECASE,
)
_QUOTED = re.compile('"([^"]{1,200})"|\u201c([^\u201d]{1,200})\u201d')
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_COMMON = {  # words that nearly every sentence of a language has, and the others here have not
    "en": "the of and is with in on are to at from by this that its an it",
    "de": "der die das und ist mit auf ein eine im den von sind zu einem einer",
    "fr": "le la les et est des une du dans avec sur sont au aux ce cette",
    "es": "el los las es una con del por que hay sobre su como y",
    "it": "il gli che di una con del della nel sono sul e lo",
    "pt": "os as um uma com do da em no na que ao dos",
    "nl": "het een en van met op zijn aan er naar een wordt",
}
_LANGUAGES = {name: frozenset(words.split()) for name, words in _COMMON.items()}
_ENOUGH_WORDS = 12  # for telling a language by its common words
_KEYS = {"subject": str, "style": str, "setting": str, "objects": list, "colours": list, "text": list}


def quoted(text: str) -> list[str]:
    """What stands in double quotation marks."""
    return [one or two for one, two in _QUOTED.findall(text)]


def unread(text: str, known: Iterable[str]) -> list[str]:
    """The quotations in a text that are found in none of the known texts, letter by letter without signs and case."""
    return [quote for quote in quoted(text) if not _found(quote, known)]


def fault(text: str, form: Form, *, known: Sequence[str] | None = None, language: str | None = "en") -> str | None:
    """Why the caption cannot be used as this form, in a short stable reason, or None.

    `known` are the texts that may be quoted, None for any; `language` None takes every language.
    """
    if len(text) > 20 * form.most:
        return "too long"
    count = len(_WORD.findall(text))
    if not count:
        return "empty"
    if _REFUSAL.match(text):
        return "refused"
    if _STOCK.match(text):
        return "boilerplate"
    if count < form.least:
        return "too short"
    if count > form.most:
        return "too long"
    if _repeats(text):
        return "repeats"
    if language is not None and not _speaks(text, language):
        return "language"
    if known is not None and unread(text, known):
        return "invented text"
    return None


def structured_fault(value: Any, *, known: Sequence[str] | None = None) -> str | None:
    """Why an answer is no structured caption, or None."""
    if not isinstance(value, dict) or not str(value.get("subject") or "").strip():
        return "no structure"
    for key, part in value.items():
        kind = _KEYS.get(key)
        if kind is None or not isinstance(part, kind):
            return "no structure"
        if kind is list and not all(isinstance(one, str) for one in part):
            return "no structure"
    if len(json.dumps(value)) > 4000:
        return "too long"
    if _REFUSAL.match(value["subject"]):
        return "refused"
    if known is not None and any(not _found(one, known) for one in value.get("text", [])):
        return "invented text"
    return None


def _found(quote: str, known: Iterable[str]) -> bool:
    wanted = _letters(quote)
    return not wanted or any(wanted in _letters(one) for one in known)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _repeats(text: str) -> bool:
    """Whether the same four words come again and again, as from a model that does not find its end."""
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) < 16:
        return False
    fours = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return fours.most_common(1)[0][1] >= 4


def _speaks(text: str, language: str) -> bool:
    """Whether a text outside its quotations may be of this language: by its letters, and if long by common words."""
    own = _LANGUAGES.get(language)
    if own is None:
        raise ValueError(f"language {language!r} is not known here; use {', '.join(sorted(_LANGUAGES))} or None")
    bare = _QUOTED.sub(" ", text)
    letters = [letter for letter in bare if letter.isalpha()]
    if sum(letter <= "\u024f" for letter in letters) < 0.9 * len(letters):
        return False
    words = [word.lower() for word in _WORD.findall(bare)]
    if len(words) < _ENOUGH_WORDS:
        return True
    counts = {name: sum(word in common for word in words) for name, common in _LANGUAGES.items()}
    best = max(counts.values())
    return counts[language] == best and best > 0
