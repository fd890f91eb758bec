"""Text from outside, made fit to be stored and read: without control characters, wrappings and stock openings.

What is taken away is noted, so that a row tells that its caption came in another shape.
"""

import re
import unicodedata

__all__ = ["cleaned", "plain_text", "whole_sentences"]

_KEPT_FORMAT = frozenset("\u200c\u200d")  # they join letters in Persian and Hindi, and emoji
_MEDIUM = r"(?:\w+ )?(?:image|picture|photo(?:graph)?|illustration|drawing|painting)"
_OPENINGS = (
    re.compile(r"\A(?:sure|certainly|of course|okay|ok)[,!.:]\s+", re.IGNORECASE),
    re.compile(r"\Ahere(?:['\u2019]s| is)[^.:\n]{0,60}:\s*", re.IGNORECASE),
    re.compile(
        rf"\Ath(?:e|is) {_MEDIUM} (?:shows|depicts|features|displays|portrays|presents|contains|captures|is of)\s+",
        re.IGNORECASE,
    ),
    re.compile(
        rf"\Ain th(?:e|is) {_MEDIUM}(?:,? (?:we|you)(?: can)? see\s+|,? there (?:is|are)\s+|,\s+)", re.IGNORECASE
    ),
)
_LABEL = re.compile(r"\A\**(?:caption|description|answer)\**\s*:\**\s*", re.IGNORECASE)
_FENCE = re.compile(r"\A```[a-z]*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)


def plain_text(text: str) -> tuple[str, int]:
    """The text on one line without control characters, half surrogate pairs, marks of direction and unused code points.

    It comes in NFC. The number says how many characters were taken away; those that part words become blanks.
    """
    hidden = [letter for letter in text if _hidden(letter)]
    kept = (" " if letter.isspace() else letter for letter in text if letter.isspace() or not _hidden(letter))
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split()), len(hidden)


def _hidden(letter: str) -> bool:
    if letter in "\n\t\r" or letter in _KEPT_FORMAT:
        return False
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn")


def cleaned(text: str) -> tuple[str, tuple[str, ...]]:
    """A caption on one line, and notes on what was taken away from it."""
    notes: list[str] = []
    if fenced := _FENCE.match(text.strip()):
        text, notes = fenced.group(1), ["code fence removed"]
    whole, taken = plain_text(text)
    if taken:
        notes.append(f"control characters removed: {taken}")
    bare = _unquoted(_LABEL.sub("", whole))
    if bare != whole:
        notes.append("wrapping removed")
    short = _without_opening(bare)
    if short != bare:
        notes.append("stock opening removed")
    return short, tuple(notes)


def _without_opening(text: str) -> str:
    bare = text
    for opening in _OPENINGS:
        bare = opening.sub("", bare, count=1)
    return bare if bare == text else bare[:1].upper() + bare[1:]


def _unquoted(text: str) -> str:
    """Without a pair of quotation marks around the whole."""
    for first, last in (('"', '"'), ("\u201c", "\u201d"), ("'", "'"), ("`", "`")):
        inner = text[1:-1]
        if len(text) > 2 and text[0] == first and text[-1] == last and first not in inner and last not in inner:
            return inner.strip()
    return text


def whole_sentences(text: str) -> str:
    """The text up to its last full stop; all of it where there is none."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"')\u201d]*(?=\s|\Z)", text)]
    return text[: ends[-1]] if ends else text
