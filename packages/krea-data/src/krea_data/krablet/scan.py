"""Rows come out, with all their results: by key, or page by page in order of id.

A page is a short transaction of its own: a long one would keep vacuum from clearing the queues.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, LiteralString

from psycopg import Connection, sql

from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.dag import Dag, StaleDag, kept, result
from krea_data.rows import Result, Row

__all__ = ["PAGE_ROWS", "page", "pages", "read"]

PAGE_ROWS = 1000

_KEYS: LiteralString = """
with picked as materialized (
  select i.slot, i.id, i.blob, i.meta from images i join unnest(%(slots)s, %(ids)s) as g (slot, id) using (slot, id)
)"""
_PAGE: LiteralString = """
with picked as materialized (
  select i.slot, i.id, i.blob, i.meta from images i
  where i.id > %(after)s and (%(upper)s::text is null or i.id <= %(upper)s) {kept} order by i.id limit %(limit)s
)"""


def read(connection: Connection, dag: Dag, keys: Sequence[tuple[int, str]]) -> dict[str, Row]:
    """The rows of these (slot, id) by id."""
    given = {"slots": Ints([slot for slot, _ in keys]), "ids": Texts([row_id for _, row_id in keys])}
    return {row.id: row for row in _rows(connection, dag, sql.SQL(_KEYS).format(), given)}


def page(
    connection: Connection,
    dag: Dag,
    *,
    after: str = "",
    upper: str | None = None,
    limit: int = PAGE_ROWS,
    kept_by: Sequence[str] = (),
    without: str | None = None,
) -> list[Row]:
    """Up to `limit` rows with after < id <= upper in order of id, that these tasks kept and `without` lacks."""
    if any(task not in dag.after for task in kept_by):
        return []
    wanted = kept(kept_by, "i")
    if without is not None and without in dag.after:
        lacks = " and not exists (select from {} r where r.slot = i.slot and r.id = i.id)"
        wanted += sql.SQL(lacks).format(result(without))
    given = {"after": after, "upper": upper, "limit": limit}
    return _rows(connection, dag, sql.SQL(_PAGE).format(kept=wanted), given)


def pages(fetch: Callable[[str], list[Row]], size: int) -> Iterator[Row]:
    """All rows, where `fetch` gives the page of `size` rows after an id."""
    rows = fetch("")
    while rows:
        yield from rows
        rows = fetch(rows[-1].id) if len(rows) == size else []


def _rows(connection: Connection, dag: Dag, picked: sql.Composed, given: Mapping[str, Any]) -> list[Row]:
    """The picked rows in order of id, with the result of every task joined on."""
    tables = [(sql.Identifier(f"r{number}"), result(task)) for number, task in enumerate(dag.after)]
    columns = sql.SQL("").join(sql.SQL(", {0}.done_at, {0}.value, {0}.dropped").format(alias) for alias, _ in tables)
    joins = sql.SQL("").join(
        sql.SQL(" left join {} as {} using (slot, id)").format(table, alias) for alias, table in tables
    )
    statement = sql.SQL(
        "{picked} select (select dag from shard), id, picked.blob, picked.meta {columns}"
        " from picked {joins} order by id"
    ).format(picked=picked, columns=columns, joins=joins)
    found = connection.execute(statement, given).fetchall()
    if found and found[0][0] != dag.version:
        raise StaleDag
    tasks = list(dag.after)
    return [_row(tasks, line[1:]) for line in found]


def _row(tasks: Sequence[str], line: Sequence[Any]) -> Row:
    row_id, blob, meta, *cells = line
    answered = [(cells[3 * n], n) for n in range(len(tasks)) if cells[3 * n] is not None]
    results = {tasks[n]: Result(value=cells[3 * n + 1], drop=cells[3 * n + 2]) for _, n in sorted(answered)}
    return Row(id=row_id, blob=blob, meta=meta, results=results)
