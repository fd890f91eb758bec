"""Which shard a key lives on, and how the answers of all shards become one.

A key's slot is the top `bits` bits of its blake2b hash, the same in every process for ever; a shard holds a range of
slots, so that a further shard only adds a boundary.
"""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from krea_data.rows import Row

__all__ = ["Router", "merged"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Router:
    """The map from keys to `shards` shards through 2 ** `bits` slots."""

    shards: int
    bits: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 16:
            raise ValueError(f"{self.bits} bits of slots are not between 1 and 16; use 6 for a few machines")
        if not 0 < self.shards <= 1 << self.bits:
            raise ValueError(
                f"{self.shards} shards for {1 << self.bits} slots; use at least 1 and at most one per slot"
            )

    def slot(self, key: str) -> int:
        """The slot of a key, from 0 to 2 ** bits - 1."""
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> (64 - self.bits)

    def shard(self, key: str) -> int:
        """The number of the shard that holds a key."""
        return self.slot(key) * self.shards >> self.bits

    def split(self, items: Iterable[T], key: Callable[[T], str]) -> dict[int, list[T]]:
        """The items by shard, in their order."""
        parts: dict[int, list[T]] = defaultdict(list)
        for item in items:
            parts[self.shard(key(item))].append(item)
        return dict(parts)


def merged(streams: Sequence[Iterator[Row]], limit: int | None) -> Iterator[Row]:
    """Rows of several streams, each in order of id, as one stream in order of id."""
    return islice(heapq.merge(*streams, key=lambda row: row.id), limit)
