"""Caps in the manner of MetaCLIP (arXiv 2309.16671): a row is kept with the chance limit / count of its rarest concept.

Concepts with up to `limit` rows keep all of them, others about `limit`; rows that no concept matches are kept with a
chance of their own. Whether a row is kept depends on the seed and its id alone, so that a later run over more rows
changes its mind only where counts have changed, and raising the limit only adds rows.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

__all__ = ["capped", "chances", "draw"]


def chances(concepts: Mapping[str, Sequence[str]], limit: int, *, unmatched: float = 1.0) -> dict[str, float]:
    """The chance of each id to be kept, 0 to 1, by the concepts that it shows; ValueError for limits out of range."""
    if limit < 1 or not 0 <= unmatched <= 1:
        raise ValueError(f"limit {limit} must be at least 1 row, unmatched {unmatched} a chance from 0 to 1")
    counts = Counter(concept for named in concepts.values() for concept in set(named))
    return {
        one: max((min(1.0, limit / counts[concept]) for concept in named), default=unmatched)
        for one, named in concepts.items()
    }


def draw(row_id: str, seed: int = 0) -> float:
    """The number from 0 to below 1 that decides about a row."""
    digest = hashlib.sha256(f"{seed} {row_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def capped(
    concepts: Mapping[str, Sequence[str]], limit: int, *, unmatched: float = 1.0, seed: int = 0
) -> dict[str, float]:
    """The ids that are kept, with the number that each was drawn by and its chance to be above it: id -> chance."""
    found = chances(concepts, limit, unmatched=unmatched)
    return {one: chance for one, chance in found.items() if draw(one, seed) < chance}
