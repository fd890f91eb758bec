"""Records come out: by id, or page by page in order of (slot, id), the order of their tables' keys.

A record is a JSON object of id, ver, changed_at and its columns, as text; deleted ones are not there. A change that a
funnel has acknowledged is seen by every read that begins after it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from krea_data.checks import check_name
from krea_data.krablet.readers.fleet import Fleet
from krea_data.krablet.readers.selects import Known

__all__ = ["RecordReads"]

_ROW: LiteralString = "(to_jsonb(t) - 'slot' - 'state')::text"
_NAMES = b"""
select (select dag from shard), coalesce((select jsonb_object_agg(name, columns) from record), '{}')::text"""
_KEYS: LiteralString = (
    "select (select dag from shard), t.slot, t.id, {row} from (select) as one left join (select r.* from {table} r"
    " join unnest(%(slots)s::int[], %(ids)s::text[]) as g (slot, id) using (slot, id) where r.state = 0) as t on true"
)
_PAGE: LiteralString = (
    "select (select dag from shard), t.slot, t.id, {row} from (select) as one left join (select * from {table} r"
    " where (r.slot, r.id) > (%(slot)s, %(id)s) and r.state = 0"
    " and r.slot not in (select slot from away where slot <> all(%(mine)s::int[]))"
    " order by r.slot, r.id limit {limit}) as t on true order by t.slot, t.id"
)
_CHANGES = 10  # of the map in the middle of one read: more than that is a mistake


class RecordReads:
    """The records of a krablet through the pools of its readers."""

    def __init__(self, fleet: Fleet, *, timeout_s: float, keys: int) -> None:
        self._fleet, self._timeout_s, self._keys = fleet, timeout_s, keys

    async def names(self) -> dict[str, list[list[str]]]:
        """The columns [name, type, rule] of every record by name."""
        await self._fleet.slots()
        works = {number: self._lines(number, _NAMES, {}) for number in self._fleet.pools}
        found, _ = await self._fleet.gathered(works, partial=False)
        return {name: columns for lines in found.values() for name, columns in json.loads(lines[0][1]).items()}

    async def get(self, record: str, ids: Sequence[str]) -> list[str]:
        """The records of these ids that are there, in order of id; LookupError for an unknown record."""
        if not isinstance(ids, list | tuple) or not all(isinstance(one, str) and "\0" not in one for one in ids):
            raise ValueError(f"ids {ids!r:.80} are no list of ids")
        if len(ids) > self._keys:
            raise ValueError(f"{len(ids)} ids are more than {self._keys}; ask in parts")

        async def part(number: int) -> list[tuple]:
            slots = await self._fleet.slots()
            mine = [(slots.slot(one), one) for one in {*ids} if slots.shard(one) == number]
            given = {"slots": [slot for slot, _ in mine], "ids": [one for _, one in mine]}
            return await self._lines(number, self._statement(_KEYS, record), given) if mine else []

        return [text for _, _, row_id, text in sorted(await self._whole(part, record), key=lambda line: line[2])]

    async def page(self, record: str, after: Sequence[Any] | None, limit: int) -> dict[str, Any]:
        """Up to `limit` records after a place, and the place `next` to go on from, None at the end."""
        if type(limit) is not int or not 0 < limit <= self._keys:
            raise ValueError(f"limit {limit!r} is not between 1 and {self._keys}")
        slot, row_id = (-1, "") if after is None else after
        if type(slot) is not int or not isinstance(row_id, str) or "\0" in row_id:
            raise ValueError(f"after {after!r:.80} is no place; give `next` of the page before, or null")
        statement = self._statement(_PAGE, record, limit=sql.Literal(limit))

        async def part(number: int) -> list[tuple]:
            return await self._lines(number, statement, {"slot": slot, "id": row_id, "mine": self._fleet.held(number)})

        lines = sorted(await self._whole(part, record), key=lambda line: line[1:3])[:limit]
        place = [lines[-1][1], lines[-1][2]] if len(lines) == limit else None
        return {"rows": [text for *_, text in lines], "next": place}

    async def _whole(self, part: Any, record: str) -> list[tuple]:
        """What all shards give by one and the same map."""
        found: dict[int, list[tuple]] = {}
        for _ in range(_CHANGES):
            slots = await self._fleet.slots()
            try:
                found, _ = await self._fleet.gathered({number: part(number) for number in self._fleet.pools}, False)
            except psycopg.errors.UndefinedTable as error:
                raise LookupError(f"there is no record {record!r}") from error
            if self._fleet.map is slots:
                break
        return [line for lines in found.values() for line in lines if line[1] is not None]

    async def _lines(self, number: int, statement: bytes, given: Mapping[str, Any]) -> list[tuple]:
        def build(_: Known) -> tuple[bytes, Mapping[str, Any]]:
            return statement, given

        return await self._fleet.lines(number, build, timeout_s=self._timeout_s)

    @staticmethod
    def _statement(text: LiteralString, record: str, **parts: sql.Composable) -> bytes:
        table = sql.Identifier(f"record_{check_name(record)}")
        return sql.SQL(text).format(row=sql.SQL(_ROW), table=table, **parts).as_bytes()
