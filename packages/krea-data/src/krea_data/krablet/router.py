"""Which shard a key lives on, and how the answers of all shards become one.

A key's slot is the top `bits` bits of its blake2b hash, the same in every process for ever. A slot lives on one shard,
and may be moved to another; every move gives the slot a higher epoch, so of two maps the newer one is known slot by
slot.
"""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TypeVar

from krea_data.rows import Row

__all__ = ["BITS", "SlotMap", "even", "merged"]

T = TypeVar("T")
BITS = 6  # of a new krablet: for a few machines
_MOST_BITS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotMap:
    """The shard of each of the 2 ** `bits` slots, and the epoch in which it went there. Never changes."""

    bits: int
    shards: tuple[int, ...]
    epochs: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < self.bits <= _MOST_BITS:
            raise ValueError(f"{self.bits} bits of slots are not between 1 and {_MOST_BITS}; use {BITS}")
        if not len(self.shards) == len(self.epochs) == 1 << self.bits:
            raise ValueError(f"a map of {1 << self.bits} slots needs as many shards; it got {len(self.shards)}")

    def slot(self, key: str) -> int:
        """The slot of a key, from 0 to 2 ** bits - 1."""
        return _hash(key) >> (64 - self.bits)

    def shard(self, key: str) -> int:
        """The number of the shard that holds a key."""
        return self.shards[self.slot(key)]

    def split(self, items: Iterable[T], key: Callable[[T], str]) -> dict[int, list[T]]:
        """The items by shard, in their order."""
        parts: dict[int, list[T]] = defaultdict(list)
        for item in items:
            parts[self.shard(key(item))].append(item)
        return dict(parts)

    def held(self, number: int) -> list[int]:
        """The slots of a shard."""
        return [slot for slot, shard in enumerate(self.shards) if shard == number]

    def newer(self, other: "SlotMap") -> "SlotMap":
        """What is known after the other map was heard of too: this very map where that tells nothing new."""
        if not any(theirs > mine for mine, theirs in zip(self.epochs, other.epochs, strict=True)):
            return self
        pairs = zip(self.epochs, self.shards, other.epochs, other.shards, strict=True)
        best = [max((mine, shard), (theirs, their_shard)) for mine, shard, theirs, their_shard in pairs]
        return SlotMap(
            bits=self.bits, shards=tuple(shard for _, shard in best), epochs=tuple(epoch for epoch, _ in best)
        )


@lru_cache(maxsize=4096)  # on its way through one call a key is asked for more than once
def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def even(shards: int, bits: int = BITS) -> SlotMap:
    """The map of a new krablet: equal ranges of slots."""
    if not 0 < bits <= _MOST_BITS:
        raise ValueError(f"{bits} bits of slots are not between 1 and {_MOST_BITS}; use {BITS} for a few machines")
    if not 0 < shards <= 1 << bits:
        raise ValueError(f"{shards} shards for {1 << bits} slots; use at least 1 and at most one per slot")
    return SlotMap(
        bits=bits, shards=tuple(slot * shards >> bits for slot in range(1 << bits)), epochs=(1,) * (1 << bits)
    )


def merged(streams: Sequence[Iterator[Row]], limit: int | None) -> Iterator[Row]:
    """Rows of several streams, each in order of id, as one stream in order of id."""
    return islice(heapq.merge(*streams, key=lambda row: row.id), limit)
