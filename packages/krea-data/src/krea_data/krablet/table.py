"""The durable table: rows, results and queues on one or more PostgreSQL shards."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import TypeVar

import psycopg
from psycopg import Connection

from krea_data.checks import check_limit, check_name, check_row, result_text
from krea_data.interfaces import Task
from krea_data.krablet import counts, scan
from krea_data.krablet.answers import Answer, Entry, complete_rows, insert_rows, store_rows
from krea_data.krablet.claim import Floor, Lease, fail_row, lease_rows, release_rows
from krea_data.krablet.connection import Shard
from krea_data.krablet.dag import Dag, StaleDag, declare, load
from krea_data.krablet.errors import SchemaError
from krea_data.krablet.funnel import Funnel
from krea_data.krablet.migrate import migrate
from krea_data.krablet.router import Router, merged
from krea_data.rows import Claim, Dead, Result, Row, Stats

__all__ = ["Krablet"]

T = TypeVar("T")
_Key = tuple[str, str]  # task, id
_Value = tuple[str, str | None]  # JSON, reason for dropping
_CHUNK_ROWS = 1000
_DAG_CHANGES = 20  # in the middle of one statement: more than that is a mistake
_POISON = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)


class Krablet:
    """`Table` and `Queues` over PostgreSQL: an id lives on one shard, a task on all of them.

    `dsns` name the shards in their order, for ever. Safe among threads; hand other processes the DSNs. A shard that
    does not answer is waited for up to `patience_s`, then `ShardDown` is raised. A task tries a row `max_attempts`
    times, `retry_s` * 2 ** attempts apart.
    """

    def __init__(
        self,
        dsns: Sequence[str],
        *,
        max_attempts: int = 5,
        retry_s: float = 0.1,
        patience_s: float = 60.0,
        bits: int = 6,
    ) -> None:
        if isinstance(dsns, str) or not dsns:
            raise ValueError("a krablet needs a list with the DSN of every shard, such as the dsns of a Cluster")
        if max_attempts < 1:
            raise ValueError(f"max_attempts {max_attempts} is below 1; use 1 for no second try")
        self.dsns = tuple(dsns)
        self.max_attempts = max_attempts
        self.retry_s = retry_s
        self.router = Router(shards=len(dsns), bits=bits)
        self._shards = [Shard(number, dsn, patience_s) for number, dsn in enumerate(dsns)]
        self._floors: dict[tuple[int, str], Floor] = {}
        self._funnels: dict[int, Funnel[_Key, _Value]] = {}
        self._lock = threading.Lock()
        self._turns = count()
        try:
            self._dags = [shard.attempt(lambda c, s=shard: self._open(c, s), patience_s=0) for shard in self._shards]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Krablet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what was put, and close all connections."""
        for funnel in self._funnels.values():
            funnel.close()
        for shard in self._shards:
            shard.close()

    def add(self, rows: Iterable[Row]) -> int:
        """Take in rows without their results, ignoring ids that are there already; return how many were new."""
        stream = iter(rows)
        new = 0
        while chunk := [(row, check_row(row)) for row in islice(stream, _CHUNK_ROWS)]:
            for number, part in self.router.split(chunk, lambda pair: pair[0].id).items():
                entries = [Entry(self.router.slot(row.id), row.id, row.blob, meta) for row, meta in part]
                new += self.guarded(number, lambda c, d, e=entries: insert_rows(c, d, e))
        return new

    def register(self, tasks: Sequence[Task]) -> None:
        """Make the tasks and their `after` known, or ValueError for a bad name or a circle; due rows are queued."""
        after = {task.name: tuple(task.after) for task in tasks}
        for number, dag in enumerate(self._dags):
            if any(name not in dag.queued or dag.after[name] != after[name] for name in after):
                self._dags[number] = self._shards[number].attempt(lambda c: declare(c, after))

    def claim(self, task: Task, worker: str, limit: int, lease_s: float) -> list[Claim]:
        """Lease up to `limit` due rows; an empty answer means none now, `pending` tells whether some come later."""
        check_limit(limit, lease_s)
        self.register([task])
        first = next(self._turns)  # not always the same shard
        claims: list[Claim] = []
        for step in range(len(self._shards)):
            number = (first + step) % len(self._shards)
            claims += self._claim(number, task.name, worker, limit - len(claims), lease_s)
            if len(claims) == limit:
                break
        return claims

    def complete(self, task: str, results: Mapping[Claim, Result]) -> int:
        """Store the results whose claims are still held and return how many these are, or ValueError and nothing."""
        slot = self.router.slot
        answers = [
            Answer(slot(claim.id), claim.id, result_text(result, task, claim.id), result.drop, claim.token)
            for claim, result in results.items()
        ]
        stored = 0
        for number, part in self.router.split(answers, lambda answer: answer.id).items():
            if self._knows(number, task):
                stored += self.guarded(number, lambda c, d, p=part: complete_rows(c, d, task, p))
        return stored

    def fail(self, task: str, claim: Claim, error: str) -> None:
        """Send a row that is still held to the end of the queue, or set it aside after its last attempt."""
        held = Lease(slot=self.router.slot(claim.id), id=claim.id, token=claim.token)
        number = self.router.shard(claim.id)
        if self._knows(number, task):
            self._shards[number].attempt(lambda c: fail_row(c, task, held, error, self.max_attempts, self.retry_s))

    def scan(self, *, kept_by: Sequence[str] = (), limit: int | None = None) -> Iterator[Row]:
        """Rows in order of id with all their results in the order in which they came in.

        Pages are read as they are needed, each as of its own moment.
        """
        size = scan.PAGE_ROWS if limit is None else max(1, min(limit, scan.PAGE_ROWS))

        def stream(number: int) -> Iterator[Row]:
            def fetch(after: str) -> list[Row]:
                return self.guarded(number, lambda c, d: scan.page(c, d, after=after, limit=size, kept_by=kept_by))

            return scan.pages(fetch, size)

        return merged([stream(number) for number in range(len(self._shards))], limit)

    def put(self, task: str, results: Mapping[str, Result]) -> None:
        """Store results by row id through the funnels and return when they are durable.

        ValueError names ids that are not in the table or whose values PostgreSQL refuses, after storing the others.
        """
        check_name(task)
        values = {
            (task, row_id): (result_text(result, task, row_id), result.drop) for row_id, result in results.items()
        }
        self.declare_results(task)
        waiting = []
        stream = iter(values.items())
        while chunk := list(islice(stream, _CHUNK_ROWS)):
            for number, part in self.router.split(chunk, lambda pair: pair[0][1]).items():
                waiting.append(self._funnel(number).submit(dict(part)))
        refused = {row_id: error for future in waiting for (_, row_id), error in future.result().items()}
        if refused:
            row_id, error = min(refused.items(), key=lambda pair: pair[0])
            raise ValueError(f"{len(refused)} results were not stored, such as that of {row_id!r}: {error}") from error

    def due(self, task: str) -> int:
        """About how many rows could be claimed now; a shard stops counting at 10,000."""
        return sum(self._each(task, lambda c, d: counts.due_rows(c, task)))

    def pending(self, task: str) -> int:
        """Rows that this task has yet to answer: due, waiting for another attempt, or leased by anybody."""
        return sum(self._each(task, lambda c, d: counts.pending_rows(c, task)))

    def release(self, worker: str, *, crashed: bool = False) -> int:
        """End every lease of this worker, as if never claimed, or as lost in a crash; return how many."""
        tasks = {task for dag in self._dags for task in dag.queued}
        return sum(sum(self._each(task, lambda c, d, t=task: release_rows(c, t, worker, crashed))) for task in tasks)

    def dead(self, task: str) -> list[Dead]:
        """The rows that this task gave up on, in order of id."""
        found = [shard.attempt(lambda c: counts.dead_rows(c, task)) for shard in self._shards]
        return sorted((dead for part in found for dead in part), key=lambda dead: dead.id)

    def revive(self, task: str) -> int:
        """Give the task's dead rows all their attempts again, say after a bug was fixed; return how many."""
        return sum(self._each(task, lambda c, d: counts.revive_rows(c, d, task)))

    def stats(self) -> dict[str, Stats]:
        """Where every task stands; reads all results."""
        tallies: dict[str, counts.Tally] = {}
        for number, shard in enumerate(self._shards):
            dag = self._dags[number] = shard.attempt(load)
            for task in dag.after:
                found = shard.attempt(lambda c, d=dag, t=task: counts.tally(c, d, t))
                tallies[task] = tallies.get(task, counts.Tally()) + found
        return {task: tallies[task].stats() for task in sorted(tallies)}

    def declare_results(self, task: str) -> None:
        """Make room for the results of a task that has no queue."""
        for number, dag in enumerate(self._dags):
            if task not in dag.after:
                self._dags[number] = self._shards[number].attempt(lambda c: declare(c, {}, [task]))

    def guarded(self, number: int, work: Callable[[Connection, Dag], T]) -> T:
        """Do `work` on a shard with its DAG, again where the connection broke or the DAG turned out to be old."""

        def current(connection: Connection) -> T:
            for _ in range(_DAG_CHANGES):
                try:
                    return work(connection, self._dags[number])
                except StaleDag:
                    self._dags[number] = load(connection)
            raise SchemaError(
                f"{self._shards[number].name} gets new tasks all the time; register them once, at the start"
            )

        return self._shards[number].attempt(current)

    def _open(self, connection: Connection, shard: Shard) -> Dag:
        """Bring a shard up to date and make sure that it is the one we take it for."""
        migrate(connection)
        mine = (shard.number, self.router.shards, self.router.bits)
        connection.execute("insert into shard (number, shards, bits) values (%s, %s, %s) on conflict do nothing", mine)
        found = connection.execute("select number, shards, bits from shard").fetchone()
        if found != mine:
            raise SchemaError(
                f"{shard.name} was set up as (number, shards, bits) = {found} and is now used as {mine};"
                " give the DSNs of all shards in their order"
            )
        return load(connection)

    def _knows(self, number: int, task: str) -> bool:
        """Whether the task has a queue on the shard."""
        if task not in self._dags[number].queued:
            self._dags[number] = self._shards[number].attempt(load)
        return task in self._dags[number].queued

    def _each(self, task: str, work: Callable[[Connection, Dag], T]) -> list[T]:
        """The work's answers from all shards where the task has a queue."""
        return [self.guarded(n, work) for n in range(len(self._shards)) if self._knows(n, task)]

    def _claim(self, number: int, task: str, worker: str, limit: int, lease_s: float) -> list[Claim]:
        floor = self._floors.setdefault((number, task), Floor())
        leases = self._shards[number].attempt(
            lambda c: lease_rows(c, task, worker, limit, lease_s, self.max_attempts, floor)
        )
        if not leases:
            return []
        rows = self.guarded(number, lambda c, d: scan.read(c, d, [(lease.slot, lease.id) for lease in leases]))
        return [Claim(row=rows[held.id], token=held.token, id=held.id, attempt=held.attempt) for held in leases]

    def _funnel(self, number: int) -> Funnel[_Key, _Value]:
        with self._lock:
            if number not in self._funnels:
                self._funnels[number] = Funnel(lambda batch: self._write(number, batch), poison=_POISON)
            return self._funnels[number]

    def _write(self, number: int, batch: Mapping[_Key, _Value]) -> dict[_Key, Exception]:
        """Store a batch of puts in one transaction, and return those whose rows are not there."""
        slot = self.router.slot

        def store(connection: Connection, dag: Dag) -> dict[_Key, Exception]:
            refused: dict[_Key, Exception] = {}
            with connection.transaction():
                for task in sorted({task for task, _ in batch}):
                    part = [
                        Answer(slot(row_id), row_id, *batch[task, row_id]) for name, row_id in batch if name == task
                    ]
                    for row_id in store_rows(connection, dag, task, part):
                        refused[task, row_id] = ValueError("its id is not in the table; add the row first")
            return refused

        return self.guarded(number, store)
