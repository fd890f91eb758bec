"""Answers go in: with a claim (`complete_rows`), without one (`store_rows`), and new rows (`insert_rows`).

Each is one transaction that stores the answers, empties the queue of them and fills the queues of the tasks that waited
for them. All writers take rows in order of (slot, id), so they cannot deadlock. A statement does not see what commits
while it waits for a lock, so what decides by the work of others takes its locks in a statement before: `store_rows`
locks the rows of images, and so does `complete_rows` where a task waits for several others, since the last two answers
may come at the same moment.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, LiteralString, NamedTuple

from psycopg import Connection, Cursor, errors, sql

from krea_data.columns import typed_text
from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.dag import Dag, StaleDag, kept
from krea_data.krablet.names import queue, result
from krea_data.krablet.plans import aged
from krea_data.rows import Claim, Result

__all__ = [
    "Answer",
    "Entry",
    "answers_of",
    "complete_rows",
    "complete_statement",
    "insert_rows",
    "send_answers",
    "store_rows",
    "stored_rows",
]

_GIVEN = """
with given as materialized (
  select * from unnest(%(slots)s, %(ids)s, %(tokens)s, %(values)s, %(drops)s)
    as g (slot, id, token, value, dropped)
)"""
_LOCK = """
with given as materialized (select * from unnest(%(slots)s, %(ids)s) as g (slot, id)), locked as materialized (
  select 1 from images i join given g using (slot, id) order by i.slot, i.id for no key update of i
) select count(*) from locked"""
_HELD = """
, held as (
  delete from {queue} q using given g
  where q.slot = g.slot and q.id = g.id and q.token = g.token and (select dag from shard) = {dag}
  returning g.slot, g.id, g.value, g.dropped
)"""
_KNOWN = """
, held as materialized (
  select g.* from given g join images i using (slot, id) where (select dag from shard) = {dag}
)"""
_UNQUEUE = """
, queued as materialized (
  select q.slot, q.id from held h join {queue} q using (slot, id) order by q.slot, q.id for update of q
), gone as (
  delete from {queue} q using queued h where q.slot = h.slot and q.id = h.id
)"""
_UNDEAD = ", undead as (delete from dead d using held h where d.task = {task} and d.slot = h.slot and d.id = h.id)"
_STORED = """
, stored as (
  insert into {result} (slot, id, value, dropped)
  select slot, id, value::jsonb, dropped from held order by slot, id
  on conflict (slot, id) do update
    set value = excluded.value, dropped = excluded.dropped, done_at = excluded.done_at
)"""
# A row that is held has no answer yet; to insert without a look at what may be there is a quarter faster.
_INSERTED = """
, stored as (
  insert into {result} (slot, id, value, dropped)
  select slot, id, value::jsonb, dropped from held order by slot, id
)"""
_NEXT = """
, {name} as (
  insert into {queue} (slot, id)
  select slot, id from held h
  where dropped is null and not exists (select from {result} r where r.slot = h.slot and r.id = h.id) {kept} {alive}
  order by slot, id on conflict do nothing
)"""
_ALIVE = "and not exists (select from dead d where d.task = {task} and d.slot = h.slot and d.id = h.id)"
_RECALL = """
, {name} as (
  delete from {queue} q using held h where h.dropped is not null and q.slot = h.slot and q.id = h.id
)"""
_INSERT = """
with given as materialized (
  select * from unnest(%(slots)s, %(ids)s, %(blobs)s, %(metas)s) as g (slot, id, blob, meta)
), new as (
  insert into images (slot, id, blob, meta)
  select slot, id, blob, meta::jsonb from given where (select dag from shard) = {dag} order by slot, id
  on conflict do nothing returning slot, id
)"""
_FIRST = (
    ", {name} as (insert into {queue} (slot, id) select slot, id from new order by slot, id on conflict do nothing)"
)


class Answer(NamedTuple):
    """What a task says of a row, as it goes over the wire."""

    slot: int
    id: str
    value: str  # JSON
    dropped: str | None
    token: int = 0


class Entry(NamedTuple):
    """A new row, as it goes over the wire."""

    slot: int
    id: str
    blob: str
    meta: str  # JSON


def answers_of(
    results: Mapping[Claim, Result], task: str, columns: Mapping[str, str], slot: Callable[[str], int]
) -> list[Answer]:
    """Results on their way in, or ValueError naming the first that cannot be stored."""
    return [
        Answer(
            slot(claim.id) if claim.slot is None else claim.slot,
            claim.id,
            typed_text(result, task, claim.id, columns),
            result.drop,
            claim.token,
        )
        for claim, result in results.items()
    ]


def complete_rows(connection: Connection, dag: Dag, task: str, answers: Sequence[Answer]) -> int:
    """Store the answers whose tokens still hold their rows in the queue, and return how many these are."""
    try:
        if not dag.meets(task):
            return stored_rows(send_answers(connection, dag, task, answers), dag)
        with connection.pipeline(), connection.transaction():  # all in one round trip
            cursor = send_answers(connection, dag, task, answers)
        return stored_rows(cursor, dag)
    except errors.UniqueViolation:  # a row was queued although it had an answer: somebody has mended tables by hand
        with connection.transaction():
            return stored_rows(send_answers(connection, dag, task, answers, over=True), dag)


def send_answers(
    connection: Connection, dag: Dag, task: str, answers: Sequence[Answer], *, over: bool = False
) -> Cursor:
    """Send what `complete_rows` does; where a task waits for several others this is for inside of a transaction."""
    given = _columns(sorted(answers, key=itemgetter(0, 1)))
    if dag.meets(task):
        connection.execute(_LOCK, given)
    return connection.execute(aged(complete_statement(dag, task, over=over)).encode(), given, prepare=True)


def stored_rows(cursor: Cursor, dag: Dag) -> int:
    """How many answers were stored, or `StaleDag` and none were."""
    return _checked(cursor, dag)


def complete_statement(dag: Dag, task: str, *, over: bool = False) -> str:
    """The SQL that stores what is still held, `over` answers that are there already."""
    key = ("complete", task, over)
    if key not in dag.statements:
        parts: list[LiteralString] = [_GIVEN, _HELD, _STORED if over else _INSERTED]
        composed = _composed(parts, dag, task, _nexts(dag, task, known=False), "count(*) from held")
        dag.statements[key] = composed.as_string(None)
    return dag.statements[key]


def store_rows(connection: Connection, dag: Dag, task: str, answers: Sequence[Answer]) -> set[str]:
    """Store answers by id inside a transaction of the caller, whoever holds the rows; return the ids not there."""
    first: list[LiteralString] = [_GIVEN, _KNOWN, _UNDEAD]
    if task in dag.queued:
        first.append(_UNQUEUE)
    second: list[LiteralString] = [_GIVEN, _KNOWN, _STORED]
    effects = [*_nexts(dag, task, known=True), *_recalls(dag, task)]
    given = _columns(answers)
    with connection.pipeline():  # the three go out together
        connection.execute(_LOCK, given)
        freed = connection.execute(_composed(first, dag, task, [], "count(*) from held"), given)
        stored = connection.execute(
            _composed(second, dag, task, effects, "coalesce(array_agg(id), '{}') from held"), given
        )
    _checked(freed, dag)
    return {answer.id for answer in answers} - set(_checked(stored, dag))


def insert_rows(connection: Connection, dag: Dag, entries: Sequence[Entry]) -> int:
    """Take in the rows whose ids are new, queue them for the tasks that wait for none, and return how many."""
    first = [sql.SQL(_FIRST).format(name=sql.Identifier(f"next_{name}"), queue=queue(name)) for name in dag.first()]
    statement = _composed([_INSERT], dag, "", first, "count(*) from new")
    given = {
        "slots": Ints([entry.slot for entry in entries]),
        "ids": Texts([entry.id for entry in entries]),
        "blobs": Texts([entry.blob for entry in entries]),
        "metas": Texts([entry.meta for entry in entries]),
    }
    return _done(connection, statement, given, dag)


def _columns(answers: Sequence[Answer]) -> dict[str, Ints | Texts]:
    slots, ids, values, drops, tokens = zip(*answers, strict=True) if answers else ((),) * 5
    return {
        "slots": Ints(slots),
        "ids": Texts(ids),
        "tokens": Ints(tokens),
        "values": Texts(values),
        "drops": Texts(drops),
    }


def _composed(
    parts: Sequence[LiteralString], dag: Dag, task: str, more: Sequence[sql.Composed], last: LiteralString
) -> sql.Composed:
    """The parts with the task's names, then what follows for others, then the version of the DAG and `last`."""
    names = {"dag": sql.Literal(dag.version), "task": sql.Literal(task)}
    if task:
        names |= {"queue": queue(task), "result": result(task)}
    head = [sql.SQL(part).format(**names) for part in parts]
    return sql.Composed([*head, *more, sql.SQL(" select (select dag from shard), "), sql.SQL(last)])


def _nexts(dag: Dag, task: str, *, known: bool) -> list[sql.Composed]:
    """Queue what the task kept for the tasks that waited for it; `known` rows may have been here before."""
    return [
        sql.SQL(_NEXT).format(
            name=sql.Identifier(f"next_{name}"),
            queue=queue(name),
            result=result(name),
            kept=kept([other for other in dag.after[name] if other != task], "h"),
            alive=sql.SQL(_ALIVE).format(task=sql.Literal(name)) if known else sql.SQL(""),
        )
        for name in dag.next(task)
    ]


def _recalls(dag: Dag, task: str) -> list[sql.Composed]:
    """Take what the task dropped out of the queues of the tasks that waited for it."""
    return [
        sql.SQL(_RECALL).format(name=sql.Identifier(f"recall_{name}"), queue=queue(name)) for name in dag.next(task)
    ]


def _done(connection: Connection, statement: sql.Composed, given: Mapping[str, Ints | Texts], dag: Dag) -> Any:
    """Execute, and return the last column of the one row, or raise `StaleDag`."""
    return _checked(connection.execute(statement, given), dag)


def _checked(cursor: Cursor, dag: Dag) -> Any:
    """The last column of the one row, or `StaleDag` where the shard has another DAG: then nothing was done."""
    row = cursor.fetchone()
    if row is None or row[0] != dag.version:
        raise StaleDag
    return row[1]
