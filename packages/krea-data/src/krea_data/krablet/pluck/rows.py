"""Pages of rows on their way to a function: read as text, for the process that calls the function to parse."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import Connection, sql

from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.names import result
from krea_data.krablet.pluck.question import Question
from krea_data.rows import Result, Row

__all__ = ["Raw", "Reader", "parsed"]

_PAGE = """
with picked as materialized (
  select i.slot, i.id, i.blob, i.meta from images i
  where i.id > %(after)s {upper} and {wanted} order by i.id limit %(limit)s
)
select (select dag from shard), slot, id, picked.blob, picked.meta::text {columns} from picked {joins} order by id"""


Found = tuple[tuple[str, str, str | None], ...]
"""(task, value as JSON, reason for dropping) of what tasks found out."""


class Raw(NamedTuple):
    """A row as it comes, `meta` as JSON. A tuple, since a million of them go from process to process."""

    slot: int
    id: str
    blob: str
    meta: str
    results: Found = ()


class Reader:
    """Reads the rows that a question asks for. Its SQL is put together once: that costs as much as to run it."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self._version = -1
        self._tasks: list[str] = []
        self._values: dict[str, Any] = {}
        self._queries: dict[bool, bytes] = {}  # by whether the range has an end

    def read(self, connection: Connection, dag: Dag, *, after: str, upper: str | None, limit: int) -> list[Raw]:
        """Up to `limit` rows with after < id <= upper in order of id, with their results."""
        if dag.version != self._version:
            self._compose(dag)
        given = {**self._values, "after": after, "upper": upper, "limit": limit}
        found = connection.execute(self._queries[upper is not None], given).fetchall()
        if found and found[0][0] != dag.version:
            raise StaleDag
        if not self._tasks:
            return [Raw._make((*line[1:], ())) for line in found]
        return [Raw._make((*line[1:5], _found(self._tasks, line[5:]))) for line in found]

    def _compose(self, dag: Dag) -> None:
        wanted, self._values = self.question.condition(dag)
        self._tasks = [task for task in dag.after if task != self.question.into]  # rows with that are passed over
        tables = [(sql.Identifier(f"r{number}"), result(task)) for number, task in enumerate(self._tasks)]
        columns = [sql.SQL(", {0}.done_at, {0}.value::text, {0}.dropped").format(alias) for alias, _ in tables]
        joins = [sql.SQL(" left join {} as {} using (slot, id)").format(table, alias) for alias, table in tables]
        # An end that may be null would keep the index from stopping there.
        for ends, upper in ((False, sql.SQL("")), (True, sql.SQL("and i.id <= %(upper)s"))):
            query = sql.SQL(_PAGE).format(
                upper=upper, wanted=wanted, columns=sql.Composed(columns), joins=sql.Composed(joins)
            )
            self._queries[ends] = query.as_bytes(None)
        self._version = dag.version


def parsed(rows: Sequence[Raw]) -> list[Row]:
    """The rows as functions get them."""
    metas = json.loads(f"[{','.join([row[3] for row in rows])}]")  # at once: half the time
    return [
        Row(id=row_id, blob=blob, meta=meta, results=_results(found) if found else {})
        for (_, row_id, blob, _, found), meta in zip(rows, metas, strict=True)
    ]


def _results(found: Found) -> dict[str, Result]:
    return {task: Result(value=json.loads(value), drop=drop) for task, value, drop in found}


def _found(tasks: Sequence[str], cells: Sequence[Any]) -> Found:
    """What tasks found out, in the order in which they did."""
    there = sorted((cells[3 * n], n) for n in range(len(tasks)) if cells[3 * n] is not None)
    return tuple((tasks[n], cells[3 * n + 1], cells[3 * n + 2]) for _, n in there)
