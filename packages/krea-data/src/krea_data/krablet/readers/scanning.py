"""A scan over all shards: pages of every shard, given out in one order of id.

Every shard is read as many rows at a time as fit about a megabyte; then all rows up to the id that the slowest shard
has reached go out in order. The memory that a scan needs does not grow with its length.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from krea_data.krablet.errors import ShardDown
from krea_data.krablet.readers.fleet import Fleet
from krea_data.krablet.readers.selects import Page
from krea_data.krablet.router import SlotMap
from krea_data.krablet.rpc.errors import Busy

__all__ = ["Pages", "Scan", "first", "letters"]

_FIRST_ROWS, _LEAST_ROWS, _MOST_ROWS, _PAGE_BYTES = 64, 8, 4096, 1 << 20


class Pages(Protocol):
    """Where a scan reads: the shards, and their pages; how many scans are running, and may."""

    fleet: Fleet
    scanning: int
    scans: int

    async def page_of(self, number: int, page: Page, after: str, rows: int) -> list[tuple]:
        """Up to `rows` lines (version, slot, cells) of one shard after an id."""
        ...


class Scan:
    """Rows in order of id over all shards. `missing` names the shards that are left out, once all pages were read."""

    def __init__(
        self, reads: Pages, page: Page, after: str, limit: int | None, partial: bool, missing: list[str]
    ) -> None:
        self.columns = page.columns
        self.missing = missing
        self.rows = 0  # given out so far
        self._reads, self._wanted, self._partial = reads, page, partial
        self._left = limit
        self._after = after  # given out up to here
        self._feeds: list[_Feed] = []

    async def pages(self) -> AsyncIterator[list[tuple]]:
        """The rows, some at a time, as tuples of cells in the order of `columns`."""
        reads = self._reads
        if reads.scanning >= reads.scans:
            raise Busy(f"{reads.scanning} scans are running", retry_after_s=1.0)
        reads.scanning += 1
        try:
            slots = await self._begin()
            while self._left != 0:
                await asyncio.gather(*(self._fill(feed) for feed in self._feeds if feed.hungry))
                if reads.fleet.map is not slots:  # what one shard has no more, another may have given before
                    slots = await self._begin()
                    continue
                rows = self._ready()
                if rows:
                    self.rows, self._after = self.rows + len(rows), rows[-1][0]
                    yield rows
                elif all(feed.ended for feed in self._feeds):
                    break
        finally:
            reads.scanning -= 1

    async def _begin(self) -> SlotMap:
        """Read all shards anew from where the scan is; return the map that this holds for."""
        slots = await self._reads.fleet.slots()
        pools = self._reads.fleet.pools.values()
        self._feeds = [_Feed(pool.number, self._after) for pool in pools if pool.name not in self.missing]
        return slots

    def _ready(self) -> list[tuple]:
        """All rows up to the id that every shard has reached, in order; no more than are left to give out."""
        reached = [feed.after for feed in self._feeds if not feed.ended]
        rows = [row for feed in self._feeds for row in feed.take(min(reached) if reached else None)]
        rows.sort(key=first)
        rows = [row for n, row in enumerate(rows) if not n or row[0] != rows[n - 1][0]]
        if self._left is not None:
            rows = rows[: self._left]
            self._left -= len(rows)
        return rows

    async def _fill(self, feed: "_Feed") -> None:
        rows = feed.size if self._left is None else max(1, min(feed.size, self._left))
        try:
            lines = await self._reads.page_of(feed.number, self._wanted, feed.after, rows)
        except ShardDown:
            if not self._partial:
                raise
            feed.ended = True
            self.missing.append(self._reads.fleet.pools[feed.number].name)
            return
        feed.put([line[2:] for line in lines], rows)


class _Feed:
    """What was read of one shard and not yet given out."""

    def __init__(self, number: int, after: str) -> None:
        self.number = number
        self.after = after  # read up to here
        self.ended = False
        self.size = _FIRST_ROWS
        self._rows: list[tuple] = []

    @property
    def hungry(self) -> bool:
        """Whether the next page has to be read before anything can go out."""
        return not self._rows and not self.ended

    def put(self, rows: list[tuple], asked: int) -> None:
        """Take in a page for which `asked` rows were asked; the next will be about `_PAGE_BYTES` large."""
        self.ended = len(rows) < asked
        if rows:
            self.after = rows[-1][0]
            self._rows += rows
            fits = int(_PAGE_BYTES * len(rows) / max(1, letters(rows)))
            self.size = max(_LEAST_ROWS, min(_MOST_ROWS, 4 * self.size, fits))

    def take(self, upto: str | None) -> list[tuple]:
        """Give out the rows up to this id, or all."""
        count = len(self._rows)
        if upto is not None and self._rows and self._rows[-1][0] > upto:
            count = next(n for n, row in enumerate(self._rows) if row[0] > upto)
        rows, self._rows = self._rows[:count], self._rows[count:]
        return rows


def letters(rows: Sequence[Sequence[Any]]) -> int:
    """About how large the rows are: the letters in them."""
    return sum(len(cell) for row in rows for cell in row if cell.__class__ is str)


def first(row: Sequence[Any]) -> str:
    """The id of a row of cells."""
    return row[0]
