"""Maps as the shards know them: begun, resumed, stopped, and how far they are."""

import json
import uuid
from dataclasses import asdict, dataclass
from typing import Any

from psycopg import Connection

from krea_data.krablet.dag import Dag
from krea_data.krablet.pluck.plan import plan
from krea_data.krablet.pluck.question import Job, Limits, Question
from krea_data.krablet.pluck.spans import left
from krea_data.krablet.table import Krablet

__all__ = ["Progress", "begin", "counted", "found", "give_up", "stop", "sweep"]

_COUNT = """
select coalesce(sum(rows), 0)::bigint, coalesce(sum(failed), 0)::bigint,
  coalesce(sum(case when done then rows + failed else greatest(rows + failed, expected) end), 0)::bigint,
  count(*), count(*) filter (where done),
  coalesce(array_agg(distinct worker) filter (where not done and lease_until > now()), '{}')
from span where map = %s"""

_KEEP = """
insert into map (name, run, question, limits, fn, slots)
values (%(name)s, %(run)s, %(question)s, %(limits)s, %(fn)s, %(slots)s) on conflict (name) do update
set limits = excluded.limits, fn = excluded.fn, slots = excluded.slots, state = 'running', problem = null"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a map is: rows answered and failed, about how many in all, ranges, workers, the first problem."""

    rows: int = 0
    failed: int = 0
    expected: int = 0
    ranges: int = 0
    ranges_done: int = 0
    workers: int = 0
    state: str = "running"
    problem: str | None = None

    @property
    def done(self) -> bool:
        """Whether every range is worked through."""
        return self.ranges == self.ranges_done

    @property
    def share(self) -> float:
        """The part that is done, 0 to 1, by rows as they were counted by sample."""
        return 1.0 if self.done else min(0.999, (self.rows + self.failed) / max(1, self.expected))


def begin(table: Krablet, job: Job, parts: int) -> bool:
    """Start a map, or go on with the unfinished one of this name; returns whether it goes on.

    ValueError if the unfinished one asks another question.
    """
    table.declare_results(job.question.into)
    shards = range(len(table.dsns))
    runs = [table.guarded(number, lambda c, _: _unfinished(c, job)) for number in shards]
    run = next((run for run in runs if run is not None), None)
    new = uuid.uuid4()
    for number in shards:
        _begin_on(table, number, job, run or new, parts, wake=True)
    return run is not None


def found(table: Krablet, name: str) -> Job:
    """The map of this name, or LookupError."""
    asked = "select question, limits, fn from map where name = %s"
    row = table.guarded(0, lambda c, _: c.execute(asked, (name,)).fetchone())
    if row is None:
        raise LookupError(f"there is no map {name!r} on this krablet; start it with pluck.Table(...).map(...)")
    question, limits, fn = row
    return Job(name=name, question=Question(**question), limits=Limits(**limits), fn=fn)


def stop(table: Krablet, name: str, state: str, problem: str | None = None) -> None:
    """Let all workers of a map stop after their page: as 'cancelled', or as 'failed' with a problem."""
    for number in range(len(table.dsns)):
        table.guarded(
            number,
            lambda c, _: c.execute(
                "update map set state = %s, problem = coalesce(problem, %s) where name = %s and state = 'running'",
                (state, problem, name),
            ),
        )


def give_up(table: Krablet, name: str, problem: str) -> None:
    """Note why a worker cannot take part; the others go on."""
    note = "update map set problem = coalesce(problem, %s) where name = %s"
    table.guarded(0, lambda c, _: c.execute(note, (problem.replace("\0", "?")[:4000], name)))


def counted(table: Krablet, name: str) -> Progress:
    """How far the map is, over all shards."""
    lines = [table.guarded(number, lambda c, _: _counted(c, name)) for number in range(len(table.dsns))]
    workers = {worker for line in lines for worker in line[5]}
    problems = [line[7] for line in lines if line[7]]
    states = {line[6] for line in lines}
    return Progress(
        rows=sum(line[0] for line in lines),
        failed=sum(line[1] for line in lines),
        expected=sum(line[2] for line in lines),
        ranges=sum(line[3] for line in lines),
        ranges_done=sum(line[4] for line in lines),
        workers=len(workers),
        state=next((state for state in ("failed", "cancelled") if state in states), "running"),
        problem=problems[0] if problems else None,
    )


def sweep(table: Krablet, job: Job, parts: int = 1) -> bool:
    """Plan again where slots have moved since, when all ranges are done; False if there is nothing more to do.

    A row may have moved from before a cursor to behind one. Rows with a result are passed over.
    """
    for number in range(len(table.dsns)):
        table.shards.attempt(number, lambda c, n=number: table.shards.reload(n, c))  # hear of moves, and finish them
    shards = range(len(table.dsns))
    runs = [table.guarded(number, lambda c, _: _run(c, job.name)) for number in shards]
    run = next((run for run in runs if run is not None), None)
    planned = [run is not None and _begin_on(table, number, job, run, parts, wake=False) for number in shards]
    return any(planned)  # all of them, not up to the first


def _unfinished(connection: Connection, job: Job) -> uuid.UUID | None:
    """The run of the map of this name that has ranges left, or ValueError if that is another map."""
    row = connection.execute("select run, question from map where name = %s", (job.name,)).fetchone()
    if row is None or not left(connection, job.name):
        return None
    if Question(**row[1]) != job.question:
        raise ValueError(
            f"the unfinished map {job.name!r} asks another question ({Question(**row[1]).text});"
            " ask the same to go on with it, or give this one another name"
        )
    return row[0]


def _run(connection: Connection, name: str) -> uuid.UUID | None:
    row = connection.execute("select run from map where name = %s", (name,)).fetchone()
    return None if row is None else row[0]


def _begin_on(table: Krablet, number: int, job: Job, run: uuid.UUID, parts: int, *, wake: bool) -> bool:
    return table.guarded(number, lambda c, d: _begin(c, d, job, run, parts, wake=wake))


def _begin(connection: Connection, dag: Dag, job: Job, run: uuid.UUID, parts: int, *, wake: bool) -> bool:
    """Make the shard's map that of this run; returns whether ranges were planned. `wake`: also a stopped map."""
    with connection.transaction():
        key = "map " + job.name
        connection.execute("select pg_advisory_xact_lock(hashtextextended(%s || current_schema(), 0))", (key,))
        (slots,) = connection.execute("select coalesce(sum(epoch), 0)::bigint from slot_map").fetchone() or (0,)
        row = connection.execute("select run, slots, state from map where name = %s", (job.name,)).fetchone()
        rest = left(connection, job.name)
        if row is not None and row[0] != run and not rest:
            row = None  # an old one
        if row is not None and not wake and row[2] != "running":
            return False
        planned = row is None or (not rest and row[1] != slots)
        if row is None:
            connection.execute("delete from span where map = %s", (job.name,))
            connection.execute("delete from map where name = %s", (job.name,))
        given = {"name": job.name, "question": job.question.text, "limits": json.dumps(asdict(job.limits))}
        given |= {"run": run, "fn": job.fn, "slots": slots if planned or row is None else row[1]}
        connection.execute(_KEEP, given)
        if planned:
            plan(connection, dag, job, parts)
        return planned


def _counted(connection: Connection, name: str) -> tuple[Any, ...]:
    spans = connection.execute(_COUNT, (name,)).fetchone() or (0, 0, 0, 0, 0, [])
    state = connection.execute("select state, problem from map where name = %s", (name,)).fetchone()
    return (*spans, *(state or ("running", None)))
