"""A pass over the whole table that finds copies: first equal bytes, then equal shape and colour within a few bits.

Candidates come from bands: two hashes of 144 bits within 8 agree in at least one of 9 bands of 16 bits, so that looking
up each band finds every pair and compares few others. Links chain (a like b, b like c), so every cluster is repaired:
its medoid stays, only what is directly linked to the medoid goes, and the rest is clustered again.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krea_data.rows import Result, Row

__all__ = ["Dedup", "links", "rank_of", "stars"]

_BITS = 144
_CHUNK = 1_000_000  # pairs compared at a time


def _words(hexadecimal: Sequence[str], bits: int) -> NDArray[np.uint64]:
    """Hashes in hex as `n words` of 64 bits."""
    size = -(-bits // 64)
    whole = b"".join(int(one, 16).to_bytes(8 * size) for one in hexadecimal)
    return np.frombuffer(whole, dtype=">u8").reshape(-1, size).astype(np.uint64)


def _distance(words: NDArray[np.uint64], left: NDArray[np.intp], right: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.bitwise_count(words[left] ^ words[right]).sum(axis=1).astype(np.intp)


def _bands(hexadecimal: Sequence[str], count: int) -> Iterator[NDArray[np.uint64]]:
    """The values of each of `count` bands that share out the 144 bits."""
    edges = [_BITS * band // count for band in range(count + 1)]
    whole = [int(one, 16) for one in hexadecimal]
    for low, high in itertools.pairwise(edges):
        mask = (1 << min(high - low, 64)) - 1
        yield np.array([one >> low & mask for one in whole], dtype=np.uint64)


def _same(values: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """All pairs of places with equal values, in portions."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=values[order][:1] + np.uint64(1)))
    for run in np.split(order, starts[1:]):
        step = max(1, _CHUNK // len(run))
        for start in range(0, len(run) - 1, step):
            first, second = np.nonzero(np.arange(start, min(start + step, len(run)))[:, None] < np.arange(len(run)))
            yield run[first + start], run[second]


def links(
    phash: Sequence[str], colour: Sequence[str], *, phash_limit: int = 8, colour_limit: int = 2
) -> dict[tuple[int, int], tuple[int, int]]:
    """All pairs (i < j) within both limits, with their two distances; exact: no pair is missed."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    if len(phash) < 2:
        return found
    shapes, colours = _words(phash, _BITS), _words(colour, 42)
    for band in _bands(phash, phash_limit + 1):
        for left, right in _same(band):
            near = _distance(shapes, left, right)
            tint = _distance(colours, left, right)
            keep = (near <= phash_limit) & (tint <= colour_limit)
            pairs = np.sort(np.stack([left[keep], right[keep]], axis=1), axis=1)
            both = zip(near[keep].tolist(), tint[keep].tolist(), strict=True)
            found.update(zip(map(tuple, pairs.tolist()), both, strict=True))
    return found


def _components(near: Mapping[int, set[int]]) -> Iterator[set[int]]:
    seen: set[int] = set()
    for start in near:
        if start in seen:
            continue
        found, edge = {start}, [start]
        while edge:
            fresh = near[edge.pop()] - found
            found |= fresh
            edge += fresh
        seen |= found
        yield found


def stars(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """For each node that has to go, the medoid that it is directly linked to; lower numbers are better nodes.

    In every connected component the node with the most links becomes a medoid (of equals the best) and takes its
    neighbours with it, and so on with those left over, so that nothing goes because of a chain.
    """
    near: dict[int, set[int]] = defaultdict(set)
    for left, right in pairs:
        near[left].add(right)
        near[right].add(left)
    gone: dict[int, int] = {}
    for left_over in _components(near):
        while len(left_over) > 1:
            links_left = {node: near[node] & left_over for node in left_over}
            medoid = min(left_over, key=lambda node: (-len(links_left[node]), node))
            gone |= dict.fromkeys(links_left[medoid], medoid)
            left_over = left_over - links_left[medoid] - {medoid}
    return gone


def rank_of(row: Row, prefer: Sequence[str]) -> tuple[float, ...]:
    """Numbers that are lower for better rows: larger pictures, then smaller values in `meta` of the preferred keys."""
    size = row.results["decode"].value if "decode" in row.results else {}
    numbers = [float(row.meta[key]) if key in row.meta else float("inf") for key in prefer]
    return -float(int(size.get("width", 0)) * int(size.get("height", 0))), *numbers


def _tint(mean: str) -> tuple[int, int, int]:
    return int(mean[:2], 16), int(mean[2:4], 16), int(mean[4:], 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dedup:
    """Drops "duplicate" (equal bytes) and "near duplicate"; the value names the row that stays and how near it is.

    Better rows are larger pictures, then those with the smaller values in `meta` of the keys in `prefer`, then the
    first by id. Of equal bytes the best row stays; of near copies the medoid (the most links, of equals the best).
    Rows whose perceptual hash is vague are compared by bytes alone. Give it all rows that `hash` has kept.
    """

    phash_limit: int = 8  # of 144 bits
    colour_limit: int = 2  # of 42 bits
    mean_limit: int = (
        16  # of 255, per channel of the mean colour: the colour hash has red, orange and yellow in one bin
    )
    prefer: tuple[str, ...] = ("since", "order")
    name: str = "dedup"
    after: tuple[str, ...] = ("hash",)

    def __post_init__(self) -> None:
        if not (0 <= self.phash_limit < _BITS and 0 <= self.colour_limit <= 42 and 0 <= self.mean_limit <= 255):
            raise ValueError(
                f"limits {self.phash_limit} of 144 bits, {self.colour_limit} of 42 bits and {self.mean_limit} of 255 "
                "are out of range; 8, 2 and 16 are usual"
            )

    def _rank(self, row: Row) -> tuple[object, ...]:
        return *rank_of(row, self.prefer), row.id

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row; the same rows give the same results in any order."""
        found = self.compare(rows)
        return [found[row.id] for row in rows]

    def compare(self, rows: Iterable[Row]) -> Mapping[str, Result]:
        """Results by row id, to be put into the table in one go; ValueError for a row without a hash."""
        ranked = sorted(rows, key=self._rank)
        for row in ranked:
            if "hash" not in row.results:
                raise ValueError(f"row {row.id} has no perceptual hash; run the task hash on all rows before dedup")
        first: dict[str, Row] = {}
        results: dict[str, Result] = {}
        for row in ranked:
            kept = first.setdefault(row.blob, row)
            if kept is not row:
                results[row.id] = Result(value={"kept": kept.id, "phash": 0, "colour": 0}, drop="duplicate")
        clear = [row for row in first.values() if not row.results["hash"].value["vague"]]
        pairs = self._pairs(clear)
        for place, medoid in stars(pairs).items():
            near, tint = pairs[min(place, medoid), max(place, medoid)]
            value = {"kept": clear[medoid].id, "phash": near, "colour": tint}
            results[clear[place].id] = Result(value=value, drop="near duplicate")
        return {row.id: results.get(row.id, Result()) for row in ranked}

    def _pairs(self, rows: Sequence[Row]) -> dict[tuple[int, int], tuple[int, int]]:
        phash, colour, mean = ([row.results["hash"].value[key] for row in rows] for key in ("phash", "colour", "mean"))
        found = links(phash, colour, phash_limit=self.phash_limit, colour_limit=self.colour_limit)
        tints = [_tint(one) for one in mean]

        def alike(left: int, right: int) -> bool:
            return max(abs(a - b) for a, b in zip(tints[left], tints[right], strict=True)) <= self.mean_limit

        return {pair: distances for pair, distances in found.items() if alike(*pair)}
