"""The shapes that curation asks of its surroundings; each has a fake and a real implementation."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from krea_data.rows import Claim, Result, Row

__all__ = ["Blobs", "Controls", "Queues", "Table", "Task", "TypedTask", "WorkTable"]


class Task(Protocol):
    """One per-row job. Its name is the result's column; `after` is the DAG.

    A row is due when it has no result of this task, and every task in `after` has kept it.
    """

    @property
    def name(self) -> str: ...

    @property
    def after(self) -> tuple[str, ...]: ...

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        """Work on a batch, one result per row in order; raising fails the whole batch, which is then bisected."""
        ...


class TypedTask(Task, Protocol):
    """A task that says more about itself. Each of these attributes may also stand alone in a `Task`.

    `columns` are the types (int, float, str, bool) of fields of its value: values of another type are refused, and the
    krablet keeps these fields in typed columns. `indexed` are those of them with an index over the rows that were kept.
    `reads` are the tasks whose results its rows bring along, None for all: fewer make a faster claim.

    What it takes of a worker (usual values: `krea_data.runtime.limits`): `batch`, rows of a call at most;
    `prefetch_bytes` of the next batch's blobs, read during this one; `isolated`, run in a child process, where a row
    that crashes it, hangs or takes too much memory fails alone; `memory_bytes` of that process; `timeout_s`.
    """

    @property
    def columns(self) -> Mapping[str, type]: ...

    @property
    def indexed(self) -> tuple[str, ...]: ...

    @property
    def reads(self) -> tuple[str, ...] | None: ...


class Table(Protocol):
    """Rows, their results and their queues. `krea_data.memory` defines correct, the krablet is durable."""

    def claim(self, task: Task, worker: str, limit: int, lease_s: float) -> list[Claim]:
        """Lease up to `limit` due rows to `worker`; nobody else gets them until the lease has run out."""
        ...

    def complete(self, task: str, results: Mapping[Claim, Result]) -> int:
        """Store results and release their claims in one transaction; return how many claims were still held."""
        ...

    def fail(self, task: str, claim: Claim, error: str) -> None:
        """Send a row to the end of the queue, with its error; after the last attempt it is set aside as dead."""
        ...

    def scan(self, *, kept_by: Sequence[str] = (), limit: int | None = None) -> Iterator[Row]:
        """Rows in order of id with all their results; with `kept_by`, only those that these tasks kept."""
        ...

    def put(self, task: str, results: Mapping[str, Result]) -> None:
        """Store results by row id without a claim (for passes over the whole table, such as dedup)."""
        ...


class Queues(Protocol):
    """What a worker asks of the queues beside claiming from them."""

    def register(self, tasks: Sequence[Task]) -> None:
        """Make the tasks and their `after` known: from now on rows reach them by themselves."""
        ...

    def pending(self, task: str) -> int:
        """Rows that this task has yet to answer: due, waiting for another attempt, or leased by anybody."""
        ...

    def release(self, worker: str, *, crashed: bool = False) -> int:
        """End every lease of this worker, as if never claimed, or as lost in a crash; return how many."""
        ...


class Controls(Protocol):
    """What an operator, an autoscaler or a worker with long batches asks of the queues."""

    def extend(self, task: str, claims: Iterable[Claim], lease_s: float) -> int:
        """Let claims that are still held last `lease_s` from now, if that is longer; return how many are held."""
        ...

    def pause(self, task: str) -> None:
        """Give no more claims of this task until `resume`; rows keep arriving, leases go on to their ends."""
        ...

    def resume(self, task: str) -> None:
        """Undo `pause`."""
        ...

    def prioritise(self, task: str, ids: Iterable[str], priority: int) -> int:
        """Let these queued rows be claimed before all of a lower priority (0 is usual, -9 to 9); return how many."""
        ...

    def backlog(self, task: str) -> int:
        """About `pending`, cheaply: exact up to 10,000 rows, estimated beyond."""
        ...


class WorkTable(Table, Queues, Protocol):
    """A table with its queues: what `krea_data.worker.run` works on."""


class Blobs(Protocol):
    """Content-addressed bytes."""

    def get(self, key: str) -> bytes: ...

    def put(self, data: bytes) -> str:
        """Store and return the key: the sha256 of the data in hex."""
        ...
