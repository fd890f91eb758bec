"""Claims: SKIP LOCKED with a lease, a fencing token, and an end for rows that take their workers down.

A row is picked from the front of the queue by (run_at, n). The scan starts at a floor, the last place that this caller
claimed from, and not at the front: entries of rows that are done stay in the index until vacuum, for as long as anybody
holds an old snapshot, and to walk over them again and again is what makes such queues slow.
"""

from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection, sql

from krea_data.krablet.dag import queue

__all__ = ["Floor", "Lease", "fail_row", "lease_rows", "release_rows"]

_FRONT = "-infinity"
_SWEEP = 50  # every so many claims one starts at the very front: what a rolled-back claim left behind is there

# `room`: rows that already took a worker down share their claim with ever fewer others, in the end with nobody.
# `memory.allowance` is the same rule.
_LEASE = """
with due as materialized (
  select slot, id, n, run_at, attempts, crashes + (token is not null)::int as crashes, worker,
         case when token is null then error else 'its worker ' || worker || ' vanished' end as error
  from {queue} where run_at <= now() and (run_at, n) >= (%(at)s::timestamptz, %(n)s)
  order by run_at, n limit %(limit)s for update skip locked
), ranked as (
  select *, row_number() over places as place, min(case
      when crashes = 0 then %(limit)s
      when attempts + 1 >= %(max)s then 1
      else greatest(1, %(limit)s >> least(3 * crashes, 30)) end) over places as room
  from due where attempts < %(max)s window places as (order by run_at, n)
), buried as (
  insert into dead (task, slot, id, attempts, error, worker)
  select {task}, slot, id, attempts, coalesce(error, ''), worker from due where attempts >= %(max)s
  on conflict (task, slot, id) do update set attempts = excluded.attempts, error = excluded.error, died_at = now()
), gone as (
  delete from {queue} q using due d where d.attempts >= %(max)s and q.slot = d.slot and q.id = d.id
), stamp as (select nextval('token') as token)
update {queue} q
set run_at = now() + make_interval(secs => %(lease_s)s), attempts = q.attempts + 1, crashes = r.crashes,
    token = stamp.token, worker = %(worker)s
from ranked r, stamp where r.place <= r.room and q.slot = r.slot and q.id = r.id
returning q.slot, q.id, q.token, q.attempts, r.run_at, r.n"""

_FAIL = """
with spent as (
  delete from {queue} where slot = %(slot)s and id = %(id)s and token = %(token)s and attempts >= %(max)s
  returning slot, id, attempts, worker
), buried as (
  insert into dead (task, slot, id, attempts, error, worker)
  select {task}, slot, id, attempts, %(error)s, worker from spent
  on conflict (task, slot, id) do update set attempts = excluded.attempts, error = excluded.error, died_at = now()
)
update {queue} set token = null, error = %(error)s,
  run_at = now() + make_interval(secs => least(%(retry_s)s * 2 ^ attempts, 3600) * (1 + random() / 4))
where slot = %(slot)s and id = %(id)s and token = %(token)s and attempts < %(max)s"""

_RELEASE = """
update {queue} set run_at = now(), token = case when %(crashed)s then token end,
  attempts = attempts - case when %(crashed)s then 0 else 1 end
where worker = %(worker)s and token is not null and run_at > now()"""


@dataclass(kw_only=True, slots=True)
class Floor:
    """Where one caller's next scan of one queue may start."""

    at: datetime | str = _FRONT
    n: int = 0
    claims: int = 0

    def start(self) -> tuple[datetime | str, int]:
        """The place to start from: the floor, or now and then the very front."""
        self.claims += 1
        return (self.at, self.n) if self.claims % _SWEEP else (_FRONT, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A claimed row, before it was read."""

    slot: int
    id: str
    token: int
    attempt: int = 1


def lease_rows(
    connection: Connection, task: str, worker: str, limit: int, lease_s: float, max_attempts: int, floor: Floor
) -> list[Lease]:
    """Lease up to `limit` due rows of one shard, and set those aside that have no attempt left."""
    statement = sql.SQL(_LEASE).format(queue=queue(task), task=sql.Literal(task))
    found = []
    for at, n in (floor.start(), (_FRONT, 0)):  # nothing above the floor: look below it
        given = {"at": at, "n": n, "limit": limit, "lease_s": lease_s, "max": max_attempts, "worker": worker}
        found = connection.execute(statement, given).fetchall()
        if found:
            *_, last_at, last_n = max(found, key=lambda row: row[4:])
            floor.at, floor.n = last_at, max(0, last_n - 4 * limit)
            break
    else:
        floor.at, floor.n = _FRONT, 0
    return [Lease(slot=row[0], id=row[1], token=row[2], attempt=row[3]) for row in found]


def fail_row(connection: Connection, task: str, held: Lease, error: str, max_attempts: int, retry_s: float) -> None:
    """Send a row that is still held to the end of the queue, or set it aside after its last attempt."""
    statement = sql.SQL(_FAIL).format(queue=queue(task), task=sql.Literal(task))
    given = {"slot": held.slot, "id": held.id, "token": held.token, "max": max_attempts, "retry_s": retry_s}
    connection.execute(statement, {**given, "error": error.replace("\0", "?")})


def release_rows(connection: Connection, task: str, worker: str, crashed: bool) -> int:
    """End the worker's leases of one task, and return how many there were."""
    statement = sql.SQL(_RELEASE).format(queue=queue(task))
    return connection.execute(statement, {"worker": worker, "crashed": crashed}).rowcount
