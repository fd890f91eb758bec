"""Captions in three lengths from what is known without looking twice: label, tags, groups, style, measured colours.

short: "red apple"; medium: "red apple, flat style"; long: "a drawing of a red apple in flat style, food and drink,
fruit, diet; with green on white". Style words stand in a fixed place, so that a prompt can ask for a style.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.colour import NAMES, Palette, palette
from krea_data.tasks.picture import decode

__all__ = ["LENGTHS", "Caption", "captions", "label_words", "long", "medium", "short", "with_article"]

LENGTHS = ("short", "medium", "long")
_MORE = ("paragraph", "tags", "structured")  # that `krea_data.tasks.rewrite` writes too

_MASS = frozenset(
    [
        "bread",
        "bacon",
        "butter",
        "rice",
        "popcorn",
        "broccoli",
        "garlic",
        "salt",
        "ice",
        "fire",
        "fog",
        "money",
        "spaghetti",
        "sushi",
        "oden",
        "corn",
        "milk",
        "sake",
        "mate",
        "honey",
        "soap",
        "dna",
        "coral",
        "hockey",
        "badminton",
        "baseball",
        "basketball",
        "bowling",
        "cricket",
        "football",
        "lacrosse",
        "tennis",
        "volleyball",
        "green",
        "salad",
        "lightning",
        "rain",
        "snow",
        "water",
        "wood",
        "yarn",
        "thread",
        "food",
        "music",
        "tea",
        "coffee",
        "wine",
        "beer",
        "grass",
        "weather",
        "clothing",
    ]
)
_SINGULAR = re.compile(r"(ss|us|is|as)$|^(tennis|lens|compass|gas|bus|news|chess|christmas)$")
_GROUPS = {
    "animals-nature": "animals and nature",
    "food-drink": "food and drink",
    "travel-places": "travel and places",
    "smileys-emotion": "faces and emotion",
    "people-body": "people and body",
    "symbols": "symbol",
    "objects": "object",
    "flags": "flag",
}
_TURNED = {"transport", "face"}  # "transport-ground" is ground transport
_INNER = {"food", "animal", "plant", "place", "other", "person"}  # "food-fruit" is fruit
_WHOLE = {
    "sky-weather": "sky and weather",
    "arts-crafts": "arts and crafts",
    "light-video": "light and video",
    "book-paper": "books and paper",
    "other-object": "",
    "other-symbol": "",
    "place-other": "",
    "plant-other": "plant",
    "person-role": "profession",
    "hand-fingers-open": "open hand",
    "hand-fingers-partial": "hand",
    "hand-fingers-closed": "closed hand",
    "hand-single-finger": "pointing hand",
    "hand-prop": "hand",
    "transport-sign": "transport sign",
    "emotion": "",
    "geometric": "shape",
    "alphanum": "letters",
    "av-symbol": "player symbol",
}


def label_words(label: str) -> str:
    """A label as people would say it: "flag: Peru" is "flag of Peru", "woman: red hair" is "woman with red hair"."""
    text = " ".join(label.replace("\u2019", "'").split())  # the curly apostrophe
    head, colon, tail = text.partition(": ")
    if not colon:
        return text
    if head == "flag":
        return f"flag of {tail}"
    if head == "keycap":
        return f"keycap {tail}"
    if tail.endswith(("hair", "beard")) or tail == "bald":
        return f"bald {head}" if tail == "bald" else f"{head} with {tail}"
    return f"{head}, {tail}"


def with_article(words: str) -> str:
    """Words with "a" or "an", or without one where English has none: names, plurals and things that are not counted."""
    first = words.split()[0]
    if first.lower() in ("a", "an", "the", "no"):
        return words
    if words.startswith("flag of "):
        return f"the {words}"
    if re.match(r"(man|woman|person|boy|girl|child|adult)\b(?!s)", words):
        return f"{'an' if first == 'adult' else 'a'} {words}"
    last = re.split(r" (?:of|with|on|in|and|without|behind|under|from|at) |, ", words)[0].split()[-1].lower()
    plural = last.endswith("s") and not _SINGULAR.search(last)
    if plural or last in _MASS or words.lower() in _MASS or not first[0].isalpha():
        return words
    if first[0].isupper() and not re.match(r"(Christmas|Japanese|T-Rex|French|Santa)\b", first):
        return words
    return f"{'an' if re.match(r'[aei]|o(?!ne)|u(?!ni|til)|hour', first.lower()) else 'a'} {words}"


def _subgroup(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    first, _, rest = name.partition("-")
    if rest and first in _INNER:
        return rest.replace("-", " ")
    if rest and first in _TURNED:
        return f"{rest.replace('-', ' ')} {first}"
    return name.replace("-", " ")


def _topics(meta: Mapping[str, Any], words: str) -> list[str]:
    """Group, subgroup and up to two tags, none of which says again what stands before it."""
    group = str(meta.get("group") or "")
    stated = [_GROUPS.get(group, group.replace("-", " ")), _subgroup(str(meta.get("subgroup") or ""))]
    said = {word.rstrip("s") for word in re.findall(r"\w+", words.lower())}
    kept: list[str] = []
    tags = [str(tag) for tag in meta.get("tags", ()) if re.fullmatch(r"[^\W\d_][^\d_]{2,}", str(tag))]
    for place, topic in enumerate([*stated, *tags]):
        fresh = {word.rstrip("s") for word in re.findall(r"\w+", topic.lower())}
        wanted = fresh - said - {"and", "of", "the", "in"} if place < 2 else fresh
        if not fresh or not wanted or (place >= 2 and (fresh & said or fresh & set(NAMES))):
            continue
        kept.append(topic)
        said |= fresh
        if len(kept) == len([topic for topic in stated if topic in kept]) + 2:
            break
    return kept


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _tints(words: str, tints: Palette) -> str:
    """The colours that the label does not say already, and the background."""
    named = set(re.findall(r"\w+", words.lower()))
    fresh = [colour for colour in tints.colours if colour not in named]
    where = f"on {tints.background}" if tints.background else ""
    lead = "with " if fresh and len(fresh) < len(tints.colours) else ""
    return f"{lead}{_and(fresh)} {where}".strip() if fresh else where


def short(meta: Mapping[str, Any]) -> str:
    """The label alone; ValueError if the row has none."""
    if not str(meta.get("label") or "").strip():
        raise ValueError("a caption needs a label; give the row a `label` in its meta or leave it out")
    return label_words(str(meta["label"]))


def medium(meta: Mapping[str, Any]) -> str:
    """Label and style."""
    style = meta.get("style")
    return f"{short(meta)}, {style}" if style else short(meta)


def long(meta: Mapping[str, Any], tints: Palette) -> str:
    """A sentence: label, style, topics and colours."""
    words = short(meta)
    style = f" in {meta['style']}" if meta.get("style") else ""
    head = ", ".join([f"a drawing of {with_article(words)}{style}", *_topics(meta, words)])
    tail = _tints(words, tints)
    return f"{head}; {tail}" if tail else head


def captions(row: Row) -> dict[str, str]:
    """The captions by length that the task wrote, and those of other forms if there are any; KeyError if it has not."""
    value = row.results["caption"].value
    return {form: value[form]["text"] for form in (*LENGTHS, *(more for more in _MORE if more in value))}


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """Keeps rows with a label, with `{"short": {"text", "source"}, "medium": ..., "long": ...}`; drops "no label"."""

    blobs: Blobs
    name: str = "caption"
    after: tuple[str, ...] = ("flat",)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        return [self._write(row) for row in rows]

    def _write(self, row: Row) -> Result:
        if not str(row.meta.get("label") or "").strip():
            return Result(drop="no label")
        tints = palette(decode(self.blobs.get(row.blob))[0])
        text = {
            "short": (short(row.meta), "label"),
            "medium": (medium(row.meta), "label, style"),
            "long": (long(row.meta, tints), "label, style, group, tags, measured colours"),
        }
        value: dict[str, Any] = {length: {"text": one, "source": source} for length, (one, source) in text.items()}
        return Result(value=value | {"colours": list(tints.colours), "background": tints.background})
