"""The ranges of ids that a map works through on one shard, and the cursor that says how far it is.

A worker leases a range. Its token fences: whoever moves the cursor must hold the newest one. The cursor moves in the
statement that stores the results, so a row counts once however often a worker is killed on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, LiteralString

from psycopg import Connection, sql

from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.names import result
from krea_data.krablet.queues.answers import Answer, store_rows

__all__ = ["Fault", "Moved", "Page", "Span", "advance", "current", "give_back", "left", "lend", "renew"]

_LEND = """
update span set token = nextval('token'), worker = %(worker)s, ahead = '',
  crashes = crashes + (worker <> '')::int, lease_until = now() + make_interval(secs => %(lease_s)s)
where (map, number) = (select s.map, s.number from span s join map m on m.name = s.map
  where s.map = %(map)s and m.state = 'running' and not s.done and s.lease_until <= now()
  order by s.number limit 1 for update of s skip locked)
returning number, cursor, upper, token, crashes"""
_ADVANCE: LiteralString = """
with moved as (
  update span set cursor = %(cursor)s, ahead = %(ahead)s, done = %(done)s, rows = rows + %(rows)s,
    failed = failed + %(failed)s, crashes = 0, lease_until = now() + make_interval(secs => %(lease_s)s)
  where map = %(map)s and number = %(number)s and token = %(token)s and cursor = %(before)s
    and (upper is null or %(cursor)s <= upper) and (select dag from shard) = {dag}
  returning upper
){stored}{died}
select (select dag from shard), (select count(*) from moved), (select upper from moved),
  (select state from map where name = %(map)s), set_config('synchronous_commit', %(commit)s, true)"""
_STORED: LiteralString = """, held as materialized (
  select g.* from unnest(%(slots)s, %(ids)s, %(values)s, %(drops)s) as g (slot, id, value, dropped)
    join images i using (slot, id)
  where exists (select from moved) and slot <> all (array(select slot from away))
), undead as (
  delete from dead d using held h where d.task = {task} and d.slot = h.slot and d.id = h.id
), stored as (
  insert into {result} (slot, id, value, dropped) select slot, id, value::jsonb, dropped from held order by slot, id
  on conflict (slot, id) do update
    set value = excluded.value, dropped = excluded.dropped, done_at = excluded.done_at
)"""
_DIED: LiteralString = """, died as (
  insert into dead (task, slot, id, attempts, error, worker)
  select {task}, slot, id, attempts, error, %(worker)s
  from unnest(%(dead_slots)s, %(dead_ids)s, %(attempts)s, %(errors)s) as f (slot, id, attempts, error)
  where exists (select from moved) order by slot, id
  on conflict (task, slot, id) do update set attempts = dead.attempts + excluded.attempts, error = excluded.error,
    worker = excluded.worker, died_at = now()
)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A leased range: cursor < id, and id <= upper if there is an upper."""

    number: int
    cursor: str
    upper: str | None
    token: int
    crashes: int = 0  # workers that were lost at this very cursor


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A row that the function did not answer; `error` is a summary and below it the worker's traceback."""

    slot: int
    id: str
    error: str
    attempts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What came of a page: `cursor` is its last id, `ahead` that of the next page; `rows` counts those answered.

    Without `sync` nobody waits for the disk. A crash of the server may then take back the last pages, each of them with
    its cursor, and they are done again; the next page that is stored with `sync` makes all before it durable.
    """

    cursor: str
    ahead: str
    done: bool
    rows: int
    answers: Sequence[Answer]
    faults: Sequence[Fault]
    sync: bool = True


@dataclass(frozen=True, slots=True)
class Moved:
    """The range and the map after the cursor moved: another worker may have taken the range's end."""

    upper: str | None
    running: bool


def lend(connection: Connection, name: str, worker: str, lease_s: float) -> Span | None:
    """A range that nobody works on, or None."""
    row = connection.execute(_LEND, {"map": name, "worker": worker, "lease_s": lease_s}).fetchone()
    if row is None:
        return None
    return Span(number=row[0], cursor=row[1], upper=row[2], token=row[3], crashes=row[4])


def advance(connection: Connection, dag: Dag, name: str, span: Span, page: Page, **given: Any) -> Moved | None:
    """Store a page and move the cursor behind it, or do nothing and return None: the range is not as the worker had it.

    The cursor must be where the worker left it. It is further on if the answer to this very statement was lost, and
    further back if a crash of the server took pages back.
    `given` are `into`, `worker` and `lease_s`. Where other tasks wait for the results, their queues are filled in the
    same transaction; otherwise all is one statement.
    """
    into = given["into"]
    values = {
        "map": name,
        "number": span.number,
        "token": span.token,
        "before": span.cursor,
        **given,
        **_moves(page),
        **_faults(page),
    }
    if into not in dag.queued and not dag.next(into):
        query = _statement(dag.version, into, bool(page.answers), bool(page.faults))
        return _moved(connection, dag, query, values | _answers(page))
    with connection.transaction():
        query = _statement(dag.version, into, False, bool(page.faults))
        moved = _moved(connection, dag, query, values)
        if moved is not None and page.answers:
            store_rows(connection, dag, into, page.answers)
    return moved


def renew(connection: Connection, name: str, span: Span, lease_s: float) -> bool:
    """Hold the range for longer; False if it is lost or the map was stopped."""
    return bool(
        connection.execute(
            "update span set lease_until = now() + make_interval(secs => %s) from map where map.name = span.map"
            " and map.state = 'running' and span.map = %s and number = %s and token = %s and not done",
            (lease_s, name, span.number, span.token),
        ).rowcount
    )


def current(connection: Connection, name: str, span: Span) -> Span | None:
    """The range as it is now, or None if another worker has it."""
    row = connection.execute(
        "select cursor, upper from span where map = %s and number = %s and token = %s and not done",
        (name, span.number, span.token),
    ).fetchone()
    if row is None:
        return None
    return Span(number=span.number, cursor=row[0], upper=row[1], token=span.token)


def give_back(connection: Connection, name: str, worker: str, *, crashed: bool = False) -> None:
    """End the leases of a worker that is no more; a crash counts against the page where it happened."""
    connection.execute(
        "update span set lease_until = '-infinity', token = nextval('token'),"
        " worker = case when %s then worker else '' end where map = %s and worker = %s and not done",
        (crashed, name, worker),
    )


def left(connection: Connection, name: str) -> int:
    """How many ranges of the map are not done."""
    (count,) = connection.execute("select count(*) from span where map = %s and not done", (name,)).fetchone() or (0,)
    return count


@lru_cache(maxsize=64)
def _statement(version: int, into: str, stores: bool, buries: bool) -> bytes:
    """The statement as text: to put it together for every page would cost as much as to run it."""
    names = {"task": sql.Literal(into), "result": result(into)}
    nothing = sql.SQL("")
    composed = sql.SQL(_ADVANCE).format(
        dag=sql.Literal(version),
        stored=sql.SQL(_STORED).format(**names) if stores else nothing,
        died=sql.SQL(_DIED).format(**names) if buries else nothing,
    )
    return composed.as_bytes(None)


def _moved(connection: Connection, dag: Dag, query: bytes, values: dict[str, Any]) -> Moved | None:
    row = connection.execute(query, values).fetchone()
    if row is None or row[0] != dag.version:
        raise StaleDag
    return Moved(upper=row[2], running=row[3] == "running") if row[1] else None


def _moves(page: Page) -> dict[str, Any]:
    return {
        "cursor": page.cursor,
        "ahead": page.ahead,
        "done": page.done,
        "rows": page.rows,
        "failed": len(page.faults),
        "commit": "on" if page.sync else "off",
    }


def _answers(page: Page) -> dict[str, Any]:
    if not page.answers:
        return {}
    return {
        "slots": Ints([answer.slot for answer in page.answers]),
        "ids": Texts([answer.id for answer in page.answers]),
        "values": Texts([answer.value for answer in page.answers]),
        "drops": Texts([answer.dropped for answer in page.answers]),
    }


def _faults(page: Page) -> dict[str, Any]:
    if not page.faults:
        return {}
    return {
        "dead_slots": Ints([fault.slot for fault in page.faults]),
        "dead_ids": Texts([fault.id for fault in page.faults]),
        "attempts": Ints([fault.attempts for fault in page.faults]),
        "errors": Texts([fault.error.replace("\0", "?") for fault in page.faults]),
    }
