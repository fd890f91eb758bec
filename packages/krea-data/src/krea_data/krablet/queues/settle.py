"""Bring a queue in line with what it should hold: the rows that its task has yet to answer, and no others.

Writers keep every queue in line by themselves; this is for what they did not write (a restore) and for what somebody
else wrote (a repair). Call it in a transaction that keeps writers out.
"""

from collections.abc import Sequence

from psycopg import Connection, sql

from krea_data.krablet.dag import kept
from krea_data.krablet.names import queue, result
from krea_data.krablet.slots import HERE

__all__ = ["not_due", "settle_bands", "settle_queue", "unqueued"]

_BANDS = """
update task set bands = found.bands from (
  select coalesce(array_agg(distinct priority order by priority), '{{}}') as bands from {queue} where priority <> 0
) as found where name = {task} and not (task.bands @> found.bands and task.bands <@ found.bands)"""
_UNQUEUED = """
from images i
where {here} and not exists (select from {queue} q where q.slot = i.slot and q.id = i.id)
  and not exists (select from {result} r where r.slot = i.slot and r.id = i.id)
  and not exists (select from dead d where d.task = {task} and d.slot = i.slot and d.id = i.id) {kept}"""
_NOT_DUE = """
from {queue} i
where {here} and (not exists (select from images m where m.slot = i.slot and m.id = i.id)
  or exists (select from {result} r where r.slot = i.slot and r.id = i.id)
  or exists (select from dead d where d.task = {task} and d.slot = i.slot and d.id = i.id) or not (true {kept}))"""


def unqueued(task: str, after: Sequence[str], slot: int | None = None) -> sql.Composed:
    """SQL from `from`: the rows `i` that are due and not in the queue."""
    return _condition(sql.SQL(_UNQUEUED), task, after, slot)


def not_due(task: str, after: Sequence[str], slot: int | None = None) -> sql.Composed:
    """SQL from `from`: the rows `i` of the queue that are not due."""
    return _condition(sql.SQL(_NOT_DUE), task, after, slot)


def settle_queue(connection: Connection, task: str, after: Sequence[str], *, slot: int | None = None) -> int:
    """Queue what is due and take out what is not, in one slot or in all that are served here; return how many rows."""
    gone = connection.execute(sql.SQL("delete ") + not_due(task, after, slot)).rowcount
    new = connection.execute(
        sql.SQL("insert into {} (slot, id) select i.slot, i.id ").format(queue(task))
        + unqueued(task, after, slot)
        + sql.SQL(" order by i.slot, i.id on conflict do nothing")
    ).rowcount
    return gone + new


def settle_bands(connection: Connection, task: str) -> bool:
    """Write down which priorities the queue's rows have, and return whether that was news; `shard` is locked."""
    statement = sql.SQL(_BANDS).format(queue=queue(task), task=sql.Literal(task))
    return connection.execute(statement).rowcount > 0


def _condition(text: sql.SQL, task: str, after: Sequence[str], slot: int | None) -> sql.Composed:
    here = sql.SQL(HERE).format() if slot is None else sql.SQL("i.slot = {}").format(sql.Literal(slot))
    names = {"queue": queue(task), "result": result(task), "task": sql.Literal(task)}
    return text.format(here=here, kept=kept(after, "i"), **names)
