"""What the user stated and whether an expansion keeps it: checks that are certain rather than many.

quote      text in quotation marks stands in the expansion letter by letter
medium     "watercolour", "photo", "flat style" and their like are named again
count      "three cats": the number stands before the same thing again
colour     "red cube": the colour belongs to the same thing again, so exchanged colours are noticed
negation   what must not appear is not mentioned, or mentioned as absent
subject    at least half of the remaining words with content come back
language   the script is the same, and the language where its small words show it

Counts, colours, media, negations and subjects are read in English; elsewhere quotes and script are checked.
"""

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

__all__ = ["Claim", "claims", "faithfulness", "missing", "quotes", "script"]

Kind = Literal["quote", "medium", "count", "colour", "negation", "subject", "language"]

_QUOTES = re.compile(
    r'"([^"\n]+)"|\u201c([^\u201c\u201d\n]+)\u201d|\u00ab([^\u00ab\u00bb\n]+)\u00bb|\u300c([^\u300c\u300d\n]+)\u300d'
    r"|\u201e([^\u201e\u201c\u201d\n]+)[\u201c\u201d]|(?<!\w)'([^'\n]+)'(?!\w)|(?<!\w)\u2018([^\u2018\u2019\n]+)\u2019(?!\w)"
)
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[.,;:!?()/]")
_SPACED = frozenset({"LATIN", "CYRILLIC", "GREEK"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One thing that the user stated; `words` are what the check looks for."""

    kind: Kind
    says: str
    words: tuple[str, ...] = ()


def claims(prompt: str) -> tuple[Claim, ...]:
    """Everything the prompt states that can be checked."""
    found = [Claim(kind="quote", says=quote) for quote in quotes(prompt)]
    rest = _QUOTES.sub(" , ", prompt)
    if language := _language(rest):
        found.append(Claim(kind="language", says=language))
    if script(rest) not in _SPACED:
        return tuple(found)
    tokens = _tokens(rest)
    negations, tokens = _negations(tokens)
    media = [row[0] for row in _words()["media"] if any(_holds(tokens, medium) for medium in row)]
    found += [Claim(kind="medium", says=medium) for medium in media]
    found += [*_counts(tokens), *_colours(tokens), *negations]
    if subject := _subject(tokens):
        found.append(Claim(kind="subject", says=" ".join(subject), words=subject))
    return tuple(dict.fromkeys(found))


def missing(prompt: str, text: str) -> tuple[Claim, ...]:
    """The claims of the prompt that the text does not keep."""
    return tuple(claim for claim in claims(prompt) if not _is_kept(claim, text))


def faithfulness(prompt: str, text: str) -> float:
    """The share of claims kept, from 0 to 1; 1 for a prompt without any."""
    stated = claims(prompt)
    return 1.0 - sum(not _is_kept(claim, text) for claim in stated) / len(stated) if stated else 1.0


def quotes(text: str) -> list[str]:
    """What stands in quotation marks; a mark that never closes quotes nothing."""
    return [next(part for part in match if part) for match in _QUOTES.findall(text)]


def script(text: str) -> str:
    """The script of most letters, such as LATIN or ARABIC; empty without letters. Japanese counts as one script."""
    counts: Counter[str] = Counter()
    for letter in text:
        if letter.isalpha():
            name = unicodedata.name(letter, "").partition(" ")[0]
            counts["JAPANESE" if name in ("HIRAGANA", "KATAKANA") else name] += 1
    if counts["JAPANESE"]:  # Chinese characters among kana are Japanese
        counts["JAPANESE"] += counts.pop("CJK", 0)
    return counts.most_common(1)[0][0] if counts else ""


def _is_kept(claim: Claim, text: str) -> bool:
    if claim.kind == "quote":
        return claim.says in text
    plain = _QUOTES.sub(" , ", text)
    if claim.kind == "language":
        return _same_language(claim.says, plain)
    tokens = _tokens(plain)
    if claim.kind == "medium":
        row = next(row for row in _words()["media"] if row[0] == claim.says)
        return any(_holds(tokens, medium) for medium in row)
    if claim.kind == "count":
        number, *things = claim.words
        places = [i for i, token in enumerate(tokens) if _number(token) == int(number)]
        return any(_follows(tokens[i + 1 :], things, 6) for i in places)
    if claim.kind == "colour":
        return _has_colour(tokens, claim.words[0], claim.words[1:])
    if claim.kind == "negation":
        return all(_is_negated(tokens, i) for i, token in enumerate(tokens) if _stem(token) in claim.words)
    stems = [_stem(token) for token in tokens]
    kept = sum(any(_alike(_stem(word), stem) for stem in stems) for word in claim.words)
    return 2 * kept >= len(claim.words)


def _negations(tokens: list[str]) -> tuple[list[Claim], list[str]]:
    """Negated things, and the tokens without them."""
    found, rest, i = [], [], 0
    while i < len(tokens):
        phrase, start = [], i
        if tokens[i] in ("no", "without", "not"):
            start = i + 1
            while start < len(tokens) and tokens[start] in ("a", "an", "any", "the"):
                start += 1
            phrase = list(_phrase(tokens[start:], 3))
        if phrase and phrase[-1] != "one":
            said = " ".join([tokens[i], *phrase])
            found.append(Claim(kind="negation", says=said, words=(_stem(phrase[-1]),)))
            rest.append(",")
            i = start + len(phrase)
        else:
            rest.append(tokens[i])
            i += 1
    return found, rest


def _counts(tokens: Sequence[str]) -> Iterator[Claim]:
    for i, token in enumerate(tokens):
        number = _number(token)
        if number is None or (i and tokens[i - 1] in (":", "/")):
            continue
        after = tokens[i + 2 :] if tokens[i + 1 : i + 2] == ["of"] else tokens[i + 1 :]
        things = list(_phrase(after, 4))
        if things and things[0] not in _words()["units"]:
            named = [thing for thing in things if thing not in _words()["colours"]] or things
            yield Claim(kind="count", says=" ".join([token, *things]), words=(str(number), *map(_stem, named)))


def _colours(tokens: Sequence[str]) -> Iterator[Claim]:
    colours = _words()["colours"]
    for i, token in enumerate(tokens):
        if token not in colours:
            continue
        after = list(tokens[i + 1 :])
        while after and (after[0] in colours or (after[0] in ("and", ",") and after[1:2] and after[1] in colours)):
            after.pop(0)
        things = list(_phrase(after, 3))
        yield Claim(kind="colour", says=" ".join([token, *things]), words=(token, *map(_stem, things)))


def _subject(tokens: Sequence[str]) -> tuple[str, ...]:
    words = _words()
    known = {*words["breaks"], *words["empty"], *words["colours"], *words["numbers"], *words["units"]}
    known |= {word for small in words["languages"].values() for word in small}
    known |= {part for row in words["media"] for medium in row for part in medium.split()}
    return tuple(dict.fromkeys(t for t in tokens if len(t) > 2 and t[0].isalpha() and t not in known))


def _has_colour(tokens: Sequence[str], colour: str, things: Sequence[str]) -> bool:
    same = {colour, *(word for row in _words()["same"] if colour in row for word in row)}
    places = [i for i, token in enumerate(tokens) if token in same]
    if not things:
        return bool(places)
    if any(_follows(tokens[i + 1 :], things, 6, through=",") for i in places):
        return True
    links = {*_words()["links"], *_words()["colours"], ",", "and"}
    for i in places:  # "the apple is bright red"
        before = i - 1
        while before >= 0 and tokens[before] in links:
            before -= 1
        if 0 <= before < i - 1 and _stem(tokens[before]) in things:
            return True
    return False


def _follows(tokens: Sequence[str], things: Sequence[str], reach: int, through: str = "") -> bool:
    """Whether one of the things comes within reach, before the phrase ends."""
    stop = set(_words()["breaks"]) - {"and", "of"}
    before = ""
    for token in tokens[:reach]:
        if token in stop or (not token[0].isalnum() and token != through):
            return False
        # "black and white cats" goes on, "three dogs and cats" does not
        if token == "and" and _stem(before) != before:
            return False
        before = token
        if _stem(token) in things:
            return True
    return False


def _is_negated(tokens: Sequence[str], place: int) -> bool:
    near = [*tokens[max(0, place - 4) : place], *tokens[place + 1 : place + 2]]
    return any(token in _words()["negators"] or token.endswith("n't") for token in near)


def _phrase(tokens: Sequence[str], most: int) -> Iterator[str]:
    """Words up to the end of the phrase."""
    for token in tokens[:most]:
        if not token[0].isalnum() or token in _words()["breaks"] or _number(token) is not None:
            return
        yield token


def _number(token: str) -> int | None:
    if token.isascii() and token.isdigit():
        return int(token) if 2 <= int(token) <= 100 else None
    return _words()["numbers"].get(token)


def _stem(word: str) -> str:
    word = word.removesuffix("'s").removesuffix("\u2019s")
    if word in _words()["plurals"]:
        return _words()["plurals"][word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _alike(one: str, other: str) -> bool:
    """Equal, or one is the beginning of the other: "forest" and "forested"."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) >= 4 and long.startswith(short))


def _holds(tokens: Sequence[str], phrase: str) -> bool:
    words = phrase.split()
    return any(list(tokens[i : i + len(words)]) == words for i in range(len(tokens) - len(words) + 1))


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower().replace("\u2019", "'"))


def _language(text: str) -> str:
    """The script, with a language where small words show one: "LATIN", "LATIN de", "ARABIC"."""
    written = script(text)
    if written != "LATIN":
        return written
    words = Counter(_tokens(text))
    hits = {name: sum(words[word] for word in small) for name, small in _words()["languages"].items()}
    ranked = sorted(hits, key=lambda name: -hits[name])
    clear = hits[ranked[0]] >= 2 and hits[ranked[0]] > hits[ranked[1]]
    return f"{written} {ranked[0]}" if clear else written


def _same_language(wanted: str, text: str) -> bool:
    found = _language(text)
    return found.split()[:1] == wanted.split()[:1] and (" " not in wanted or " " not in found or found == wanted)


@cache
def _words() -> dict[str, Any]:
    words = tomllib.loads((resources.files("krea_expander") / "data" / "words.toml").read_text(encoding="utf-8"))
    return words | {
        name: frozenset(words[name]) for name in ("colours", "units", "breaks", "empty", "negators", "links")
    }
