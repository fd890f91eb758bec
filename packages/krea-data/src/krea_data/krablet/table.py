"""The durable table: rows, results and queues on one or more PostgreSQL shards."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from psycopg import Connection

from krea_data.checks import check_lease, check_limit, check_name, check_row
from krea_data.columns import typed_text
from krea_data.interfaces import Task
from krea_data.krablet.dag import Dag, declare, declare_tasks
from krea_data.krablet.errors import ShardDown
from krea_data.krablet.funnels.puts import Puts
from krea_data.krablet.queues import controls, counts
from krea_data.krablet.queues.answers import Answer, Entry, answers_of, complete_rows, insert_rows
from krea_data.krablet.queues.claim import Floor, Lease, fail_row, release_rows
from krea_data.krablet.queues.claiming import claim_shards
from krea_data.krablet.queues.exchange import exchange
from krea_data.krablet.router import SlotMap
from krea_data.krablet.shards import Shards
from krea_data.krablet.slots import check_current
from krea_data.krablet.walk import walk
from krea_data.rows import Claim, Dead, Result, Row, Stats

__all__ = ["Krablet"]

K = TypeVar("K")
T = TypeVar("T")
_CHUNK_ROWS = 1000


class Krablet:
    """`Table` and `Queues` over PostgreSQL: an id lives on one shard, a task on all of them.

    `dsns` name the shards in their order, for ever; those that were added later may be left out. Safe among threads;
    hand other processes the DSNs. Opening does not wait (`connection.patiently` does). Later a shard that does not
    answer is waited for up to `patience_s`, then `ShardDown` is raised for what it holds; claims come from the shards
    that answer. A task tries a row `max_attempts` times, for ever if that is None, `retry_s` * 2 ** attempts apart. A
    new krablet has 2 ** `bits` slots, 64 if that is None.
    """

    def __init__(
        self,
        dsns: Sequence[str],
        *,
        max_attempts: int | None = 5,
        retry_s: float = 0.1,
        patience_s: float = 60.0,
        bits: int | None = None,
    ) -> None:
        if isinstance(dsns, str) or not dsns:
            raise ValueError("a krablet needs a list with the DSN of every shard, such as the dsns of a Cluster")
        if max_attempts is not None and max_attempts < 1:
            raise ValueError(f"max_attempts {max_attempts} is below 1; use 1 for no second try")
        self.max_attempts = max_attempts
        self.retry_s = retry_s
        self.shards = Shards(dsns, bits=bits, patience_s=patience_s)
        self._puts = Puts(self.shards)
        self._floors: dict[tuple[int, str], Floor] = {}

    def __enter__(self) -> "Krablet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dsns(self) -> tuple[str, ...]:
        """The DSNs of all shards, in order."""
        return self.shards.dsns

    @property
    def router(self) -> SlotMap:
        """Where the slots are as far as this process knows; work that is split by it may find that one has moved."""
        return self.shards.view.slots

    def close(self) -> None:
        """Write what was put, and close all connections."""
        self._puts.close()
        self.shards.close()

    def add(self, rows: Iterable[Row]) -> int:
        """Take in rows without their results, ignoring ids that are there already; return how many were new."""
        stream = iter(rows)
        slot, new, down = self.router.slot, 0, None
        while entries := [Entry(slot(r.id), r.id, r.blob, check_row(r)) for r in islice(stream, _CHUNK_ROWS)]:
            try:
                new += sum(self.routed(entries, lambda entry: entry.id, insert_rows))
            except ShardDown as error:
                down = error
        if down is not None:
            raise down
        return new

    def register(self, tasks: Sequence[Task]) -> None:
        """Make the tasks and their `after` known, or ValueError for a bad name or a circle; due rows are queued.

        A shard that is down is told with its next claim.
        """
        self.shards.reached(lambda number, patience_s: self.declare(number, tasks, patience_s))

    def claim(self, task: Task, worker: str, limit: int, lease_s: float) -> list[Claim]:
        """Lease up to `limit` due rows; an empty answer means none now, `pending` tells whether some come later."""
        check_limit(limit, lease_s)
        return claim_shards(self, task, worker, limit, lease_s)

    def complete(self, task: str, results: Mapping[Claim, Result]) -> int:
        """Store the results whose claims are still held and return how many these are, or ValueError and nothing."""
        answers = answers_of(results, task, self.columns(task), self.router.slot)

        def store(connection: Connection, dag: Dag, part: list[Answer]) -> int:
            if task in dag.queued:
                return complete_rows(connection, dag, task, part)
            check_current(connection, dag)
            return 0

        return sum(self.routed(answers, lambda answer: answer.id, store))

    def exchange(
        self, task: Task, results: Mapping[Claim, Result], worker: str, limit: int, lease_s: float
    ) -> tuple[int, list[Claim]]:
        """`complete` and `claim` in one round trip: how many results were stored, and the next rows."""
        return exchange(self, task, results, worker, limit, lease_s)

    def fail(self, task: str, claim: Claim, error: str) -> None:
        """Send a row that is still held to the end of the queue, or set it aside after its last attempt."""
        held = Lease(slot=self.router.slot(claim.id), id=claim.id, token=claim.token)

        def end(connection: Connection, dag: Dag, _: list[Lease]) -> None:
            with connection.pipeline():  # the two go out together
                if task in dag.queued:
                    fail_row(connection, task, held, error, self.max_attempts, self.retry_s)
                check_current(connection, dag)  # a row that has moved meanwhile is held where it is now

        self.routed([held], lambda lease: lease.id, end)

    def scan(self, *, kept_by: Sequence[str] = (), limit: int | None = None) -> Iterator[Row]:
        """Rows in order of id with all their results in the order in which they came in.

        Pages are read as they are needed, each as of its own moment.
        """
        return walk(self.shards, kept_by, limit)

    def put(self, task: str, results: Mapping[str, Result]) -> None:
        """Store results by row id through the funnels and return when they are durable.

        ValueError names ids that are not in the table or whose values PostgreSQL refuses, after storing the others.
        """
        columns = self.columns(check_name(task))
        values = {
            (task, row_id): (typed_text(result, task, row_id, columns), result.drop)
            for row_id, result in results.items()
        }
        self.declare_results(task)
        if refused := self._puts.store(values):
            row_id, error = min(refused.items(), key=lambda pair: pair[0])
            raise ValueError(f"{len(refused)} results were not stored, such as that of {row_id!r}: {error}") from error

    def extend(self, task: str, claims: Iterable[Claim], lease_s: float) -> int:
        """Let claims that are still held last `lease_s` from now, if that is longer; return how many are held."""
        check_lease(lease_s)
        return controls.extend(self, task, claims, lease_s)

    def pause(self, task: str) -> None:
        """Give no more claims of this task until `resume`, here or anywhere; rows keep arriving."""
        controls.pause(self, task)

    def resume(self, task: str) -> None:
        """Undo `pause`."""
        controls.resume(self, task)

    def prioritise(self, task: str, ids: Iterable[str], priority: int) -> int:
        """Let these queued rows be claimed before all of a lower priority; return for how many it is another one."""
        return controls.prioritise(self, task, ids, priority)

    def backlog(self, task: str) -> int:
        """About `pending`, for autoscaling: exact up to 10,000 rows a shard, from statistics beyond."""
        return controls.backlog(self, task)

    def columns(self, task: str) -> Mapping[str, str]:
        """The types of the typed columns of a task's results by name."""
        dags = self.shards.view.dags
        return {name: kind for _, dag in sorted(dags.items()) for name, kind in dag.columns.get(task, {}).items()}

    def due(self, task: str) -> int:
        """About how many rows could be claimed now; a shard stops counting at 10,000."""
        return sum(self._each(task, lambda c, d: counts.due_rows(c, task)))

    def pending(self, task: str) -> int:
        """Rows that this task has yet to answer: due, waiting for another attempt, or leased by anybody."""
        return sum(self._each(task, lambda c, d: counts.pending_rows(c, task)))

    def release(self, worker: str, *, crashed: bool = False) -> int:
        """End every lease of this worker, as if never claimed, or as lost in a crash; return how many."""
        released: list[int] = []

        def end(number: int, connection: Connection, dag: Dag) -> None:
            for task in sorted(dag.queued):
                released.append(release_rows(connection, task, worker, crashed))

        self.shards.everywhere(end)
        return sum(released)

    def dead(self, task: str) -> list[Dead]:
        """The rows that this task gave up on, in order of id."""
        found = self.shards.everywhere(lambda n, c, d: counts.dead_rows(c, task))
        return sorted((dead for part in found for dead in part), key=lambda dead: dead.id)

    def revive(self, task: str) -> int:
        """Give the task's dead rows all their attempts again, say after a bug was fixed; return how many."""
        revived: list[int] = []
        self._each(task, lambda c, d: revived.append(counts.revive_rows(c, d, task)))
        return sum(revived)

    def stats(self) -> dict[str, Stats]:
        """Where every task stands; reads all results."""

        def count(number: int, connection: Connection, dag: Dag) -> dict[str, counts.Tally]:
            check_current(connection, dag)  # all tasks, also the newest
            return {task: counts.tally(connection, dag, task) for task in dag.after}

        tallies: dict[str, counts.Tally] = {}
        for found in self.shards.everywhere(count):
            for task, tally in found.items():
                tallies[task] = tallies.get(task, counts.Tally()) + tally
        return {task: tallies[task].stats() for task in sorted(tallies)}

    def declare_results(self, task: str) -> None:
        """Make room for the results of a task that has no queue."""

        def make(number: int, patience_s: float | None) -> None:
            known = self.shards.view.dags.get(number)
            if known is None or task not in known.after:
                self.shards.declare(number, lambda c: declare(c, {}, [task]), patience_s)

        self.shards.reached(make)

    def guarded(self, number: int, work: Callable[[Connection, Dag], T], *, slots: SlotMap | None = None) -> T:
        """Do `work` on a shard with its DAG; see `Shards.guarded`, and `routed` for work on ids."""
        return self.shards.guarded(number, work, slots=slots)

    def routed(
        self, items: Iterable[K], key: Callable[[K], str], work: Callable[[Connection, Dag, list[K]], T]
    ) -> list[T]:
        """Do `work` on the items of every shard, wherever their slots go meanwhile; see `Shards.routed`."""
        return self.shards.routed(items, key, work)

    def floor(self, number: int, task: str) -> Floor:
        """Where this process's next claim from a queue starts."""
        return self._floors.setdefault((number, task), Floor())

    def knows(self, number: int, task: str) -> bool:
        """Whether the task has a queue on the shard."""
        dag = self.shards.view.dags.get(number)
        if dag is None or task not in dag.queued:
            dag = self.shards.attempt(number, lambda c: self.shards.reload(number, c))
        return task in dag.queued

    def declare(self, number: int, tasks: Sequence[Task], patience_s: float | None = None) -> None:
        """Make tasks known to a shard that does not know them."""
        dag = self.shards.view.dags.get(number)
        if dag is None or dag.lacks(tasks):
            self.shards.declare(number, lambda c: declare_tasks(c, tasks), patience_s)

    def _each(self, task: str, work: Callable[[Connection, Dag], T]) -> list[T]:
        """The work's answers from all shards where the task has a queue, as of one map."""

        def known(number: int, connection: Connection, dag: Dag) -> list[T]:
            if task not in dag.queued:
                check_current(connection, dag)
            return [work(connection, dag)] if task in dag.queued else []

        return [answer for part in self.shards.everywhere(known) for answer in part]
