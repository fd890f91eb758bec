"""Claims: SKIP LOCKED with a lease, a fencing token, and an end for rows that take their workers down.

A row is picked from the front of the queue by (run_at, n), the highest priority first. The scan starts at a floor, the
last place that this caller claimed from, and not at the front: entries of rows that are done stay in the index until
vacuum, for as long as anybody holds an old snapshot, and to walk over them again and again is what makes such queues
slow. Every priority in use is a band with a floor of its own, so that the place where a scan starts stays exact: within
a band rows enter at the end only. One statement leases the rows and reads them.

A lease says `held_until` in the row and leaves its place in the index, so that no index is touched: the row is changed
where it lies. A lease that ran out needs nobody to notice it, but its row lies below the floors. So now and then, and
whenever nothing is found above the floor, a claim starts at the very front; rows of rolled-back claims are there too.
"""

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import Connection, Cursor, sql

from krea_data.interfaces import Task
from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.names import queue, result
from krea_data.krablet.plans import aged
from krea_data.krablet.queues.bands import bands_of
from krea_data.rows import Claim, Result, Row

__all__ = [
    "FOREVER",
    "FRONT",
    "Floor",
    "Lease",
    "Wanted",
    "bands_of",
    "claim_rows",
    "claim_statement",
    "extend_rows",
    "fail_row",
    "release_rows",
    "send_claim",
    "take_claims",
]

Place = tuple[datetime | str, int]  # run_at, n
FOREVER = 2**31 - 1  # attempts, where rows are never given up
FRONT = ("-infinity", 0)
_SWEEP_S, _SWEEPS = 2.0, 10  # after so long a claim starts at the very front, and so often in the time of a lease

_LOOKS, _LONG_S, _PATIENCE = 3, 0.005, 20  # so many long looks in vain, and the next one waits so many times as long

# `room`: rows that already took a worker down share their claim with ever fewer others, in the end with nobody.
# `memory_queue.allowance` is the same rule. The limit is written out, so that a plan made for any parameters knows it.
_LEASE = """
with due as materialized (
  select slot, id, n, run_at, attempts, crashes + (token is not null)::int as crashes
  from {queue}
  where priority = {band} and run_at <= now() and (run_at, n) >= (%(at)s::timestamptz, %(n)s) and held_until <= now()
    and slot not in (select slot from away) and (select dag from shard) = {dag}
  order by run_at, n limit {limit} for update skip locked
), buried as (
  insert into dead (task, slot, id, attempts, error, worker)
  select {task}, slot, id, q.attempts,
         coalesce(case when token is null then error else 'its worker ' || worker || ' vanished' end, ''), worker
  from due d join {queue} q using (slot, id) where d.attempts >= %(max)s
  on conflict (task, slot, id) do update set attempts = excluded.attempts, error = excluded.error, died_at = now()
), gone as (
  delete from {queue} q using due d where d.attempts >= %(max)s and q.slot = d.slot and q.id = d.id
), chosen as (
  select slot, id, n, run_at, crashes from due where attempts < %(max)s and not (select bool_or(crashes > 0) from due)
  union all
  select slot, id, n, run_at, crashes from (
    select *, row_number() over places as place, min(case
        when crashes = 0 then {limit}
        when attempts + 1 >= %(max)s then 1
        else greatest(1, {limit} >> least(3 * crashes, 30)) end) over places as room
    from due where attempts < %(max)s and (select bool_or(crashes > 0) from due)
    window places as (order by run_at, n rows unbounded preceding)
  ) as ranked where place <= room
), stamp as (select nextval('token') as token), leased as (
  update {queue} q
  set held_until = now() + make_interval(secs => %(lease_s)s), attempts = q.attempts + 1, crashes = c.crashes,
      token = (select token from stamp), worker = %(worker)s
  from chosen c where q.slot = c.slot and q.id = c.id
  returning q.slot, q.id, q.attempts, c.run_at, c.n
)
select s.dag, t.token, l.run_at, l.n::text, null as blob, null as meta {nulls}
from shard s left join (select run_at, n from leased order by run_at desc, n desc limit 1) l on true
  left join stamp t on l.n is not null
union all
select slot, l.attempts, null, id, i.blob, i.meta::text {columns}
from leased l join images i using (slot, id) {joins}"""

_FAIL = """
with spent as (
  delete from {queue} where slot = %(slot)s and id = %(id)s and token = %(token)s and attempts >= %(max)s
  returning slot, id, attempts, worker
), buried as (
  insert into dead (task, slot, id, attempts, error, worker)
  select {task}, slot, id, attempts, %(error)s, worker from spent
  on conflict (task, slot, id) do update set attempts = excluded.attempts, error = excluded.error, died_at = now()
)
update {queue} set token = null, held_until = '-infinity', error = %(error)s,
  run_at = now() + make_interval(secs => least(%(retry_s)s * 2 ^ least(attempts, 60), 3600) * (1 + random() / 4))
where slot = %(slot)s and id = %(id)s and token = %(token)s and attempts < %(max)s"""

_RELEASE = """
with held as materialized (
  select slot, id from {queue}
  where worker = %(worker)s and token is not null and held_until > now() and slot not in (select slot from away)
  order by slot, id for update
)
update {queue} q set run_at = now(), held_until = '-infinity', token = case when %(crashed)s then q.token end,
  attempts = q.attempts - case when %(crashed)s then 0 else 1 end
from held where q.slot = held.slot and q.id = held.id"""

_EXTEND = """
with held as materialized (
  select q.slot, q.id from {queue} q join unnest(%(slots)s, %(ids)s, %(tokens)s) as g (slot, id, token)
    using (slot, id)
  where q.token = g.token order by q.slot, q.id for update of q
)
update {queue} q set held_until = greatest(q.held_until, now() + make_interval(secs => %(lease_s)s))
from held where q.slot = held.slot and q.id = held.id"""


@dataclass(kw_only=True, slots=True)
class Floor:
    """Where one caller's next scan of one queue may start: a place in every band, and the bands there were last."""

    bands: tuple[int, ...] = (0,)
    places: dict[int, Place] = field(default_factory=dict)
    claims: int = 0
    swept: dict[int, float] = field(default_factory=dict)  # when a claim last started at the front
    idle: dict[int, deque[float]] = field(default_factory=dict)  # how long the last looks there took, if all in vain
    rests: dict[int, float] = field(default_factory=dict)  # until when nobody looks there in vain again

    def starts(self, band: int, lease_s: float) -> list[Place]:
        """The places to start from until something is found: the floor and the front, or now and then the front.

        So rows of a lease of that length come again within 1.1 times its length, while anybody claims.
        """
        now, place = time.monotonic(), self.places.get(band, FRONT)
        if now < self.rests.get(band, 0.0):
            return [place]
        if place == FRONT or now > self.swept.get(band, 0.0) + min(_SWEEP_S, lease_s / _SWEEPS):
            self.swept[band] = now
            return [FRONT]
        return [place, FRONT]

    def looked(self, band: int, seconds: float, found: bool) -> None:
        """Take note of a look from the front: if they take long and find nothing, there will be fewer of them."""
        looks = self.idle.setdefault(band, deque(maxlen=_LOOKS))
        if found:
            looks.clear()
        else:
            looks.append(seconds)
            if len(looks) == _LOOKS and min(looks) > _LONG_S:
                self.rests[band] = time.monotonic() + _PATIENCE * min(looks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """What names a claimed row to the server."""

    slot: int
    id: str
    token: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a claim asks for."""

    task: Task
    worker: str
    limit: int
    lease_s: float
    max_attempts: int | None
    band: int = 0

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    @property
    def reads(self) -> Sequence[str] | None:
        """The tasks whose results the rows bring along; None for all."""
        return getattr(self.task, "reads", None)


def claim_rows(connection: Connection, dag: Dag, wanted: Wanted, floor: Floor) -> list[Claim]:
    """Lease and read due rows of one band of one shard, and set those without attempts left aside.

    `StaleDag` where the shard has another DAG.
    """
    if wanted.name in dag.paused:
        _check(connection.execute("select dag from shard").fetchall(), dag)
        return []
    floor.claims += 1
    for place in floor.starts(wanted.band, wanted.lease_s):
        began = time.monotonic()
        claims = take_claims(send_claim(connection, dag, wanted, place), dag, wanted, floor)
        if place == FRONT:
            floor.looked(wanted.band, time.monotonic() - began, bool(claims))
        if claims:
            return claims
    return []


def send_claim(connection: Connection, dag: Dag, wanted: Wanted, place: Place) -> Cursor:
    """Ask for rows from a place on."""
    statement = aged(claim_statement(dag, wanted.name, wanted.band, wanted.limit, wanted.reads)).encode()
    most = FOREVER if wanted.max_attempts is None else wanted.max_attempts
    given = {"lease_s": wanted.lease_s, "max": most, "worker": wanted.worker, "at": place[0], "n": place[1]}
    return connection.execute(statement, given, prepare=True)


def take_claims(cursor: Cursor, dag: Dag, wanted: Wanted, floor: Floor) -> list[Claim]:
    """The rows that came, which raise the floor; `StaleDag` where the shard has another DAG."""
    found = cursor.fetchall()
    _check(found, dag)
    _, token, last_at, last_n, *_ = found[0]
    if token is None:
        return []
    floor.places[wanted.band] = (last_at, int(last_n))
    tasks = _read(dag, wanted.name, wanted.reads)
    return [_claim(tasks, token, line) for line in found[1:]]


def claim_statement(dag: Dag, task: str, band: int, limit: int, reads: Sequence[str] | None = None) -> str:
    """The SQL of a claim, with the results of `reads`: never the task's own, which a due row has not."""
    key = ("claim", task, band, limit, None if reads is None else tuple(reads))
    if key not in dag.statements:
        tables = [(sql.Identifier(f"r{n}"), result(name)) for n, name in enumerate(_read(dag, task, reads))]
        columns = [sql.SQL(", {0}.done_at, {0}.value::text, {0}.dropped").format(alias) for alias, _ in tables]
        nulls = sql.SQL(", null::timestamptz, null, null") * len(tables)
        joins = [sql.SQL(" left join {} as {} using (slot, id)").format(table, alias) for alias, table in tables]
        names = {"queue": queue(task), "task": sql.Literal(task), "dag": sql.Literal(dag.version)}
        numbers = {"band": sql.Literal(band), "limit": sql.Literal(limit)}
        parts = {"nulls": nulls, "columns": sql.Composed(columns), "joins": sql.Composed(joins)}
        statement = sql.SQL(_LEASE).format(**parts, **names, **numbers)
        dag.statements[key] = statement.as_string(None)
    return dag.statements[key]


def fail_row(
    connection: Connection, task: str, held: Lease, error: str, max_attempts: int | None, retry_s: float
) -> None:
    """Send a row that is still held to the end of the queue, or set it aside after its last attempt."""
    statement = sql.SQL(_FAIL).format(queue=queue(task), task=sql.Literal(task))
    most = FOREVER if max_attempts is None else max_attempts
    given = {"slot": held.slot, "id": held.id, "token": held.token, "max": most, "retry_s": retry_s}
    connection.execute(statement, {**given, "error": error.replace("\0", "?")})


def release_rows(connection: Connection, task: str, worker: str, crashed: bool) -> int:
    """End the worker's leases of one task, and return how many there were."""
    statement = sql.SQL(_RELEASE).format(queue=queue(task))
    return connection.execute(statement, {"worker": worker, "crashed": crashed}).rowcount


def extend_rows(connection: Connection, task: str, held: Sequence[Lease], lease_s: float) -> int:
    """Let the leases that are still held last `lease_s` from now, if that is longer; return how many these are."""
    given = {
        "slots": Ints([lease.slot for lease in held]),
        "ids": Texts([lease.id for lease in held]),
        "tokens": Ints([lease.token for lease in held]),
        "lease_s": lease_s,
    }
    return connection.execute(sql.SQL(_EXTEND).format(queue=queue(task)), given).rowcount


def _check(found: Sequence[Sequence[Any]], dag: Dag) -> None:
    """`StaleDag` unless these lines say first that the shard has this DAG."""
    if not found or found[0][0] != dag.version:
        raise StaleDag


def _read(dag: Dag, task: str, reads: Sequence[str] | None) -> list[str]:
    """The tasks whose results a claim brings along."""
    return [name for name in dag.after if name != task and (reads is None or name in reads)]


def _read_json(text: str) -> dict[str, Any]:
    """An object, read here: from text that is twice as fast as from the bytes that the driver would hand on."""
    return json.loads(text) if text != "{}" else {}


def _claim(tasks: Sequence[str], token: int, line: Sequence[Any]) -> Claim:
    slot, attempt, _, row_id, blob, meta, *cells = line
    answered = sorted((cells[3 * n], n) for n in range(len(tasks)) if cells[3 * n] is not None) if cells else []
    results = {tasks[n]: Result(value=_read_json(cells[3 * n + 1]), drop=cells[3 * n + 2]) for _, n in answered}
    row = Row(id=row_id, blob=blob, meta=_read_json(meta), results=results)
    return Claim(row, token, row_id, attempt, slot)
