"""What is withheld from training to measure by, and the small, drawable vocabulary of the quick demo."""

import functools
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from importlib.resources import files
from typing import Any

from krea_data.demo.packages import DEFAULT_SETS, SETS
from krea_data.rows import Row

__all__ = ["STYLES", "core", "drawable", "withheld_concept", "withheld_pair"]

STYLES = tuple(SETS[name].style for name in DEFAULT_SETS)


@functools.cache
def _vocabulary() -> dict[str, Any]:
    return json.loads(files("krea_data.demo").joinpath("vocabulary.json").read_text("utf-8"))


@functools.cache
def _unfit() -> re.Pattern[str]:
    return re.compile("|".join(_vocabulary()["unfit"]))


def _share(salt: str, text: str) -> Fraction:
    """A number in [0, 1) that depends on the text alone."""
    return Fraction(int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:8]), 2**64)


def withheld_concept(concept: str) -> bool:
    """Whether no picture of this concept is trained on: 1 in 40 concepts."""
    return _share("concept", concept) < Fraction(1, 40)


def withheld_pair(concept: str, style: str) -> bool:
    """Whether this concept is not trained on in this style: 1 in 12 concepts miss exactly one of the four styles."""
    chosen = STYLES[int(_share("style", concept) * len(STYLES))]
    return style == chosen and _share("pair", concept) < Fraction(1, 12)


def drawable(row: Row) -> bool:
    """Whether the row's concept is a thing that a small model can draw and a person can name at a glance."""
    meta = row.meta
    return meta.get("subgroup") in _vocabulary()["subgroups"] and not _unfit().search(meta["concept"])


def _rounds(names: list[str], kinds: Mapping[str, str]) -> list[str]:
    """The names taken one of each kind in turn, kinds in the order of their first name."""
    queues: dict[str, list[str]] = defaultdict(list)
    for name in names:
        queues[kinds[name]].append(name)
    longest = max(map(len, queues.values()), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues.values() if turn < len(queue)]


def core(rows: Iterable[Row], concepts: int) -> tuple[str, ...]:
    """The names of up to `concepts` drawable concepts that all four styles have, best known first.

    Familiar things come first, then the rest by the age of the emoji, each in rounds over the subgroups, so that every
    kind is there however small the number. The same rows give the same answer in any order; ValueError if concepts < 1.
    """
    if concepts < 1:
        raise ValueError(f"concepts is {concepts}; ask for at least 1, such as 150")
    styles: dict[str, set[str]] = defaultdict(set)
    kinds: dict[str, str] = {}
    ages: dict[str, tuple[float, int, str]] = {}
    for row in rows:
        if drawable(row) and "order" in row.meta:
            concept = row.meta["concept"]
            styles[concept].add(row.meta["style"])
            kinds[concept] = row.meta["subgroup"]
            ages[concept] = (row.meta["since"], row.meta["order"], concept)
    whole = {concept for concept, found in styles.items() if found.issuperset(STYLES)}
    first = [concept for concept in _vocabulary()["familiar"] if concept in whole]
    rest = sorted(whole.difference(first), key=ages.__getitem__)
    return tuple((_rounds(first, kinds) + _rounds(rest, kinds))[:concepts])
