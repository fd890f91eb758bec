"""Priorities as bands: which of them the rows of a queue have, on one shard.

Every band in use costs every claim a look, so a shard keeps a list of them, and takes one out when it is empty. The row
of `shard` is locked whenever the list changes, or rows enter a band: so no row is in a band that is not in the list. A
change of the list is a change of the DAG, which every claim compares.
"""

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

from psycopg import Connection, sql

from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.names import queue

__all__ = ["CHUNK_ROWS", "bands_of", "forget_band", "raise_rows", "raise_source"]

CHUNK_ROWS = 5000  # that a transaction gives a priority to

# A row that could be claimed now goes to the end of its new band, where no floor has passed it by.
_RAISE: LiteralString = """
with chosen as materialized (
  select q.slot, q.id from {queue} q {given} where q.priority <> {priority} {more}
  order by q.slot, q.id {limit} for update of q
)
update {queue} q set priority = {priority}, run_at = case when q.run_at <= now() then now() else q.run_at end
from chosen c where q.slot = c.slot and q.id = c.id"""
_OF_KEYS: LiteralString = "join unnest(%(slots)s, %(ids)s) as g (slot, id) using (slot, id)"
_OF_SOURCE: LiteralString = "and starts_with(q.id, %(prefix)s) and q.slot not in (select slot from away)"
_KEEP: LiteralString = """
update task set bands = bands || %(band)s::smallint
where name = %(task)s and %(band)s <> 0 and not %(band)s = any (bands)"""
_FORGET: LiteralString = """
update task set bands = array_remove(bands, %(band)s::smallint)
where name = %(task)s and %(band)s = any (bands) and not exists (select from {queue} where priority = %(band)s)"""


def bands_of(dag: Dag, task: str) -> tuple[int, ...]:
    """The priorities that rows of the task's queue have, highest first; 0 is always there."""
    return tuple(sorted({0, *dag.bands.get(task, ())}, reverse=True))


def raise_rows(connection: Connection, dag: Dag, task: str, priority: int, keys: Sequence[tuple[int, str]]) -> int:
    """Give the queue's rows of these (slot, id) a priority, and return how many had another one."""
    given = {"slots": Ints([slot for slot, _ in keys]), "ids": Texts([row_id for _, row_id in keys])}
    return _raised(connection, dag, task, priority, (_OF_KEYS, "", ""), given)


def raise_source(connection: Connection, dag: Dag, task: str, priority: int, source: str) -> int:
    """Give up to `CHUNK_ROWS` of the rows "<source>/..." a priority, and return how many; 0 when all have it."""
    given = {"prefix": source + "/", "rows": CHUNK_ROWS}
    return _raised(connection, dag, task, priority, ("", _OF_SOURCE, "limit %(rows)s"), given)


def _raised(
    connection: Connection,
    dag: Dag,
    task: str,
    priority: int,
    which: tuple[LiteralString, LiteralString, LiteralString],
    given: Mapping[str, Any],
) -> int:
    """`which`: what is joined, a further condition, a limit."""
    parts = dict(zip(("given", "more", "limit"), map(sql.SQL, which), strict=True))
    statement = sql.SQL(_RAISE).format(queue=queue(task), priority=sql.Literal(priority), **parts)
    with connection.transaction():
        _keep_band(connection, dag, task, priority)
        return connection.execute(statement, given).rowcount


def forget_band(connection: Connection, task: str, band: int) -> None:
    """Take a band out of the list if no row is in it."""
    with connection.transaction():
        connection.execute("select from shard for update")
        statement = sql.SQL(_FORGET).format(queue=queue(task))
        if connection.execute(statement, {"band": band, "task": task}).rowcount:
            connection.execute("update shard set dag = dag + 1")


def _keep_band(connection: Connection, dag: Dag, task: str, band: int) -> None:
    """Have the band in the list until the transaction ends, or `StaleDag`."""
    if connection.execute("select dag from shard for update").fetchone() != (dag.version,):
        raise StaleDag
    if connection.execute(_KEEP, {"band": band, "task": task}).rowcount:
        connection.execute("update shard set dag = dag + 1")
