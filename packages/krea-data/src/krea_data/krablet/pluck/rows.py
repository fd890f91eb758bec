"""Pages of rows on their way to a function: read as text, for the process that calls the function to parse."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import Connection, sql

from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.names import result
from krea_data.krablet.plans import aged
from krea_data.krablet.pluck.question import Question
from krea_data.rows import Result, Row

__all__ = ["Cells", "Raw", "Reader", "parsed"]

# `offset 0` makes it a look for each row: to join with all results is right only while there are few.
_PAGE = """
select i.slot, i.id, i.blob, i.meta::text, null {columns} from images i {joins}
where i.id > %(after)s {upper} and {wanted} and (select dag from shard) = {dag} order by i.id limit %(limit)s"""
_JOIN = """left join lateral (
  select done_at, value::text, dropped from {table} r where r.slot = i.slot and r.id = i.id offset 0
) as {alias} on true"""

Found = tuple[tuple[str, str, str | None], ...]
"""(task, value as JSON, reason for dropping) of what tasks found out."""


Cells = tuple[int, str, str, str, Found | None]
"""A row as it goes from process to process."""


class Raw(NamedTuple):
    """A row as it comes, `meta` as JSON: `Cells` with names."""

    slot: int
    id: str
    blob: str
    meta: str
    results: Found | None = None


class Reader:
    """Reads the rows that a question asks for. Its SQL is put together once: that costs as much as to run it.

    A server keeps its plan of a statement, and results may become many times as many while a map runs: after every
    doubling of the pages that were read, as well as every few seconds, it is another statement.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self._version = -1
        self._tasks: list[str] = []
        self._values: dict[str, Any] = {}
        self._queries: dict[bool, str] = {}  # by whether the range has an end
        self._pages = 0

    def read(self, connection: Connection, dag: Dag, *, after: str, upper: str | None, limit: int) -> list[Raw]:
        """Up to `limit` rows with after < id <= upper in order of id, with their results."""
        if dag.version != self._version:
            self._compose(dag)
        given = {**self._values, "after": after, "upper": upper, "limit": limit}
        self._pages += 1
        query = f"{aged(self._queries[upper is not None])} /* {self._pages.bit_length()} */"
        found = connection.execute(query.encode(), given).fetchall()
        if not found and connection.execute("select dag from shard").fetchone() != (dag.version,):
            raise StaleDag
        if not self._tasks:
            return list(map(Raw._make, found))
        return [Raw._make((*line[:4], _found(self._tasks, line[5:]))) for line in found]

    def _compose(self, dag: Dag) -> None:
        wanted, self._values = self.question.condition(dag)
        self._tasks = [task for task in dag.after if task != self.question.into]  # rows with that are passed over
        tables = [(sql.Identifier(f"r{number}"), result(task)) for number, task in enumerate(self._tasks)]
        columns = [sql.SQL(", {0}.done_at, {0}.value, {0}.dropped").format(alias) for alias, _ in tables]
        joins = [sql.SQL(_JOIN).format(table=table, alias=alias) for alias, table in tables]
        # An end that may be null would keep the index from stopping there.
        for ends, upper in ((False, sql.SQL("")), (True, sql.SQL("and i.id <= %(upper)s"))):
            query = sql.SQL(_PAGE).format(
                upper=upper,
                wanted=wanted,
                dag=sql.Literal(dag.version),
                columns=sql.Composed(columns),
                joins=sql.SQL(" ").join(joins),
            )
            self._queries[ends] = query.as_string(None)
        self._version = dag.version


def parsed(rows: Sequence[Cells]) -> list[Row]:
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
