"""An expander without a language model, for the demo model: wishes into the caption form that it was trained on.

    red apple                       a red apple, flat style
    draw me two cats, 3d please     two cats, 3D style
    (level high)                    a drawing of a red apple in flat style, food and drink, fruit; on white

It adds a style where none is named, another one for each of a group, and with level "high" what the corpus says of such
things. It obeys nothing that the wish says.
"""

import re
import tomllib
import unicodedata
from functools import cache
from importlib import resources
from typing import Any

from krea_expander.expand import LEVELS, Expansion, Level, clean
from krea_expander.faithful import claims, missing, quotes, script
from krea_expander.gates import unsafe

__all__ = ["expand_by_rules", "styles"]

_MOST_CHARS = 400


def expand_by_rules(prompt: str, n: int = 1, *, level: Level = "medium", seed: int = 0) -> list[Expansion]:
    """`n` captions of the demo corpus's form; the first style is drawn by the seed, the others follow in turn."""
    if n < 1 or level not in LEVELS:
        raise ValueError(f"n {n}, level {level!r}: n from 1, level one of {LEVELS}")
    wish = clean(prompt)
    if breaches := unsafe(wish):
        return [Expansion(prompt=prompt, text="", source="refused", notes=(f"refused: {breaches[0].says}",))] * n
    if not wish:
        notes = ("the prompt is empty: the model draws what it likes",)
        return [Expansion(prompt=prompt, text="", source="prompt", notes=notes)] * n
    if level == "raw":
        return [Expansion(prompt=prompt, text=wish, source="prompt")] * n
    if len(wish) > _MOST_CHARS:
        notes = (f"drawn as it is: a prompt of {len(wish)} characters needs no expansion",)
        return [Expansion(prompt=prompt, text=wish, source="prompt", notes=notes)] * n
    words, style = _subject(wish)
    known = styles()
    chosen = [style] * n if style is not None else [known[(seed + i) % len(known)] for i in range(n)]
    return [_expansion(prompt, wish, _caption(words, one, level)) for one in chosen]


def styles() -> tuple[str, ...]:
    """The style phrases of the demo corpus."""
    return tuple(_data()["styles"])


def _expansion(prompt: str, wish: str, text: str) -> Expansion:
    # the own phrases for a style count as the style, whatever the user called it
    lost = [claim for claim in missing(wish, text) if claim.kind not in ("medium", "language")]
    if lost:
        note = f"drawn from your own words, since the rules would lose {lost[0].says!r}"
        return Expansion(prompt=prompt, text=wish, source="prompt", notes=(note,))
    return Expansion(prompt=prompt, text=text, source="rules")


def _subject(wish: str) -> tuple[str, str | None]:
    """The thing that is wished for, with its article, and the style that is asked for ("" for one that is not ours)."""
    words = wish if re.search(r"[^\W_]", wish) else _emoji_names(wish) or wish
    style: str | None = None
    for phrase, spoken in _data()["styles"].items():
        for name in spoken:
            end = r"[\s.!?]*\Z" if name.endswith("$") else r"\b[\s,]*"
            plain = re.escape(name.removesuffix("$"))
            pattern = rf"[\s,]*\b(?:in\s+(?:a\s+|the\s+)?)?{plain}(?:\s+style)?{end}"
            if style is None and not _is_quoted(wish, name) and re.search(pattern, words, re.IGNORECASE):
                style, words = phrase, re.sub(pattern, " ", words, count=1, flags=re.IGNORECASE).strip(" ,")
    if style is None and any(claim.kind == "medium" for claim in claims(words)):
        return words, ""
    for pattern in _data()["openers"]["patterns"]:
        words = re.sub(rf"\A{pattern}", "", words, flags=re.IGNORECASE)
    words = re.sub(r"[\s,]*\b(?:please|thanks|thank you)\b[\s!.?]*\Z", "", words, flags=re.IGNORECASE).rstrip(" .?!,")
    if not words:
        return ("", style) if style else (wish, None)
    return _with_article(words), style


def _caption(words: str, style: str, level: Level) -> str:
    topic = _topic(words)
    if not words:
        return style
    if level != "high" or not style or _is_foreign(words):
        return f"{words}, {style}" if style else words
    return f"a drawing of {words} in {style}{f', {topic}' if topic else ''}; on white"


def _topic(words: str) -> str:
    said = set(re.findall(r"\w+", words.lower()))
    said |= {word.removesuffix("s") for word in said} | {word.removesuffix("es") for word in said}
    return next((topic for topic, things in _data()["topics"].items() if said & set(things)), "")


def _with_article(words: str) -> str:
    """Words with "a" or "an" where English wants one."""
    data, first = _data()["words"], words.split()[0].lower()
    if script(words) != "LATIN" or not first[0].isalpha() or first in data["determiners"]:
        return words
    if words[0].isupper() and words[1:].islower() and first in _common():
        words = words[0].lower() + words[1:]  # a sentence's capital, not a name's
    if words[0].isupper() or _is_foreign(words):
        return words
    phrase = re.split(r"\s(?:of|with|on|in|and|without|behind|under|from|at|that|who|wearing|holding)\s|,", words)[0]
    last = phrase.split()[-1].lower()
    plural = last.endswith("s") and not last.endswith("ss") and last not in data["singular"]
    if plural or last in data["mass"]:
        return words
    return f"{'an' if re.match('[aei]|o(?!ne)|u(?!ni|til|se)|hour|honest', first) else 'a'} {words}"


@cache
def _common() -> frozenset[str]:
    """Words that are no names, although a sentence may begin with them."""
    things = {thing for group in _data()["topics"].values() for thing in group}
    return frozenset(things | {*_data()["words"]["common"]})


def _is_foreign(words: str) -> bool:
    """Whether the small words show another language than English."""
    return any(claim.kind == "language" and claim.says not in ("LATIN", "LATIN en") for claim in claims(words))


def _emoji_names(text: str) -> str:
    """The Unicode names of emoji, without their modifiers: "red apple"."""
    signs = [letter for letter in text if unicodedata.category(letter) == "So"]
    names = [unicodedata.name(letter, "").lower() for letter in signs]
    names = ["flag" if name.startswith("regional indicator") else name for name in names]
    return " and ".join(dict.fromkeys(name for name in names if name))


def _is_quoted(wish: str, name: str) -> bool:
    return any(name in quote.lower() for quote in quotes(wish))


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((resources.files("krea_expander") / "data" / "rules.toml").read_text(encoding="utf-8"))
