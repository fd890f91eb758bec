"""All reads of a krablet from one event loop: by key, in order of id over all shards, and counts.

Gets that come together go out together, one `= any` a shard. Every statement is a short transaction of its own, so no
reader keeps vacuum from clearing the queues. A slot that is moved meanwhile is read where it is then.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from krea_data.krablet.errors import SchemaError
from krea_data.krablet.readers.filters import parse_filter, tasks_of
from krea_data.krablet.readers.fleet import Fleet
from krea_data.krablet.readers.gets import Gets
from krea_data.krablet.readers.plain import plain_cells
from krea_data.krablet.readers.pools import TooLarge
from krea_data.krablet.readers.scanning import Scan, first, letters
from krea_data.krablet.readers.selects import (
    Column,
    Known,
    Page,
    all_columns,
    count_statement,
    keys_statement,
    page_statement,
    parse_columns,
)

__all__ = ["Found", "Limits", "Reads", "Scan"]

_MOVES = 10  # of the same slot in the middle of one read: more than that is a mistake
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_STATEMENTS = 256  # rendered ones to keep


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one read may cost: seconds of a statement by verb, keys and bytes of an answer, scans at a time."""

    get_s: float = 2.0
    many_s: float = 5.0
    page_s: float = 10.0
    count_s: float = 10.0
    keys: int = 1000
    answer_bytes: int = 32 << 20
    count_rows: int = 1_000_000
    scans: int = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Rows by `get_many`, each a list of cells, and the shards that did not answer."""

    columns: tuple[Column, ...]
    rows: list[list[Any]]
    missing: list[str] = field(default_factory=list)


class Reads:
    """Pools to every shard, `connections` each, and everything that is read through them.

    `dsns` name the shards in their order, as in `Krablet`; `line` readers wait for a shard, each up to `wait_s`.
    Belongs to the event loop that it was made in.
    """

    def __init__(
        self,
        dsns: Sequence[str],
        *,
        connections: int = 4,
        line: int = 4096,
        wait_s: float = 5.0,
        limits: Limits | None = None,
    ) -> None:
        if isinstance(dsns, str) or not dsns:
            raise ValueError("reads need a list with the DSN of every shard, such as the dsns of a Cluster")
        self.limits = limits or Limits()
        self.fleet = Fleet(dsns, size=connections, line=line, wait_s=wait_s)
        self.scanning, self.scans = 0, self.limits.scans
        self._gets: dict[int, Gets[list[Any]]] = {}

    async def close(self) -> None:
        """Close all connections that nobody uses."""
        await self.fleet.close()

    async def get(self, row_id: str) -> list[Any] | None:
        """The row of this id as `plain` says, or None."""
        slots = self.fleet.map or await self.fleet.slots()
        for _ in range(_MOVES):
            number = slots.shard(_row_id(row_id))
            if number not in self._gets:
                self._gets[number] = Gets(lambda keys, n=number: self._by_key(n, keys))
            row = await self._gets[number].get(row_id)
            slots = self.fleet.map or slots
            if slots.shard(row_id) == number:
                return row
        raise SchemaError(f"the slot of {row_id!r} is moved all the time")

    async def get_many(self, ids: Sequence[str], columns: object = None, *, partial: bool = False) -> Found:
        """The rows that are there, in order of id; `columns` as in `selects`.

        A shard that is down raises `ShardDown`, or with `partial` is named in the answer.
        """
        if not isinstance(ids, list | tuple) or len(ids) > self.limits.keys:
            raise ValueError(f"ids are not a list of at most {self.limits.keys}; ask in parts, or scan")
        left = sorted({_row_id(one) for one in ids})
        wanted = parse_columns(columns, (await self.fleet.tasks(partial=partial))[0] if columns is None else ())
        rows: list[list[Any]] = []
        missing: list[str] = []
        for _ in range(_MOVES):
            before = await self.fleet.slots()
            parts = before.split(left, lambda one: one)
            works = {number: self._keys(number, part, wanted) for number, part in parts.items()}
            answers, down = await self.fleet.gathered(works, partial)
            missing += down
            slots = await self.fleet.slots()
            for number, lines in answers.items():
                rows += [list(line[2:]) for line in lines if slots is before or slots.shard(line[2]) == number]
            if slots is before:
                break
            left = [one for number in answers for one in parts[number] if slots.shard(one) != number]
            if not left:
                break
        rows.sort(key=first)
        if letters(rows) > self.limits.answer_bytes:
            raise TooLarge(f"{len(rows)} rows are over {self.limits.answer_bytes} bytes; ask for fewer, or scan")
        return Found(columns=wanted, rows=rows, missing=sorted(set(missing)))

    async def scan(
        self,
        *,
        where: object = None,
        kept_by: Sequence[str] = (),
        columns: object = None,
        after: str = "",
        limit: int | None = None,
        partial: bool = False,
    ) -> "Scan":
        """A scan in order of id that starts when its pages are asked for; ValueError names what is wrong with it."""
        page, missing = await self._page(where, kept_by, columns, partial)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise ValueError(f"limit {limit!r} is no number of rows")
        if not isinstance(after, str) or "\0" in after:
            raise ValueError(f"after {after!r:.80} is no id")
        return Scan(self, page, after, limit, partial, missing)

    async def count(
        self, *, where: object = None, kept_by: Sequence[str] = (), cap: int = 10_000, partial: bool = False
    ) -> dict[str, Any]:
        """How many rows there are: `rows`, at most `cap`, and whether that is `exact`, besides `missing` shards."""
        if not isinstance(cap, int) or isinstance(cap, bool) or not 0 < cap <= self.limits.count_rows:
            raise ValueError(f"cap {cap!r} is not between 1 and {self.limits.count_rows}")
        page, _ = await self._page(where, kept_by, [], partial)
        rows, missing = 0, list[str]()
        for _ in range(_MOVES):
            slots = self.fleet.map
            works = {number: self._count(number, page, cap) for number in self.fleet.pools}
            counts, missing = await self.fleet.gathered(works, partial)
            rows = sum(counts.values())
            if self.fleet.map is slots:
                break
        return {"rows": min(rows, cap), "exact": rows < cap and not missing, "missing": missing}

    async def page_of(self, number: int, page: Page, after: str, rows: int) -> list[tuple]:
        """Up to `rows` lines (version, slot, cells) of one shard after an id."""

        def build(known: Known) -> tuple[bytes, Mapping[str, Any]]:
            values: dict[str, Any] = {"after": after, "mine": self.fleet.held(number)}
            return page_statement(known, page, rows, values).as_bytes(), values

        lines = await self.fleet.lines(number, build, timeout_s=self.limits.page_s, long=True)
        return lines if lines[0][1] is not None else []

    async def _page(
        self, where: object, kept_by: Sequence[str], columns: object, partial: bool
    ) -> tuple[Page, list[str]]:
        """What a scan or count asks for; a filter may ask only about tasks that some shard knows."""
        wanted = parse_filter(where)
        if not isinstance(kept_by, list | tuple) or not all(isinstance(task, str) for task in kept_by):
            raise ValueError(f"kept_by {kept_by!r:.80} is no list of names of tasks")
        tasks, missing = await self.fleet.tasks(partial=partial)
        if (unknown := sorted(tasks_of(wanted) - set(tasks))) and not missing:
            raise ValueError(f"filter asks for task {unknown[0]!r}, which has no results here; known are {list(tasks)}")
        parsed = parse_columns(columns, tasks)
        return Page(wanted=wanted, kept_by=tuple(kept_by), columns=parsed), missing

    async def _count(self, number: int, page: Page, cap: int) -> int:
        def build(known: Known) -> tuple[bytes, Mapping[str, Any]]:
            values: dict[str, Any] = {"mine": self.fleet.held(number)}
            return count_statement(known, page, cap, values).as_bytes(), values

        ((_, rows),) = await self.fleet.lines(number, build, timeout_s=self.limits.count_s, long=True)
        return rows

    async def _by_key(self, number: int, keys: Sequence[str]) -> dict[str, list[Any]]:
        """Whole rows of one shard by id, as `plain` says."""
        tasks: tuple[str, ...] = ()

        def build(known: Known) -> tuple[bytes, Mapping[str, Any]]:
            nonlocal tasks
            tasks = known.tasks
            return _rendered(known, all_columns(tasks), keys)

        lines = await self.fleet.lines(number, build, timeout_s=self.limits.get_s, prepare=True)
        return {line[2]: plain_cells(tasks, line[2:]) for line in lines if line[1] is not None}

    async def _keys(self, number: int, keys: Sequence[str], columns: tuple[Column, ...]) -> list[tuple]:
        def build(known: Known) -> tuple[bytes, Mapping[str, Any]]:
            return _rendered(known, columns, keys)

        lines = await self.fleet.lines(number, build, timeout_s=self.limits.many_s, prepare=True)
        return [line for line in lines if line[1] is not None]


def _rendered(known: Known, columns: tuple[Column, ...], keys: Sequence[str]) -> tuple[bytes, Mapping[str, Any]]:
    """The statement by key, which is the same text every time, so that the server plans it once."""
    found = known.statements.get(columns)
    if found is None:
        values: dict[str, Any] = {}
        found = keys_statement(known, columns, values).as_bytes(), values
        if len(known.statements) >= _STATEMENTS:
            known.statements.clear()
        known.statements[columns] = found
    statement, values = found
    return statement, {**values, "ids": list(keys)}


def _row_id(value: object) -> str:
    if not isinstance(value, str) or _NO_TEXT.search(value):
        raise ValueError(f"{value!r:.80} is no id; an id is a text without NUL")
    return value
