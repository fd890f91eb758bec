"""What a worker does next: the tasks in turn, each with a batch of rows and the blobs that these need."""

import time
from collections.abc import Callable, Mapping, Sequence

from krea_data.interfaces import Task, WorkTable
from krea_data.runtime.ahead import Turn
from krea_data.runtime.given import read_ahead
from krea_data.runtime.limits import Limits
from krea_data.runtime.pulse import Pulse

__all__ = ["Feed"]


class Feed:
    """Claims for `worker` from one task after the other. Called by one thread at a time."""

    def __init__(
        self,
        table: WorkTable,
        tasks: Sequence[Task],
        limits: Mapping[str, Limits],
        pulse: Pulse,
        *,
        worker: str,
        lease_s: float,
        stopping: Callable[[], bool],
    ) -> None:
        self._table, self._tasks, self._limits, self._pulse = table, tasks, limits, pulse
        self._worker, self._lease_s, self._stopping = worker, lease_s, stopping
        self._next = 0

    def __call__(self) -> Turn | None:
        """The next batch, or None after a round in which no task had any."""
        for _ in self._tasks:
            if self._stopping():
                return None
            task = self._tasks[self._next]
            self._next = (self._next + 1) % len(self._tasks)
            if turn := self._turn(task):
                return turn
        return None

    def _turn(self, task: Task) -> Turn | None:
        limits = self._limits[task.name]
        claims = self._table.claim(task, self._worker, limits.batch, self._lease_s)
        if not claims:
            return None
        hold = self._pulse.hold(task.name, claims)
        self._pulse.alive(limits.timeout_s)
        blobs: dict[str, bytes] = {}
        store = getattr(task, "blobs", None)
        if store is not None and limits.prefetch_bytes:
            keys = [claim.row.blob for claim in claims]
            blobs = read_ahead(store, keys, limits.prefetch_bytes, self._go_on(limits.timeout_s))
        return Turn(task=task, limits=limits, claims=claims, blobs=blobs, hold=hold)

    def _go_on(self, timeout_s: float) -> Callable[[], bool]:
        end = time.monotonic() + timeout_s

        def go_on() -> bool:
            self._pulse.alive(timeout_s)
            return not self._stopping() and time.monotonic() < end

        return go_on
