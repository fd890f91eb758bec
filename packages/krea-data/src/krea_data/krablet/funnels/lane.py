"""A lane of a funnel: a bounded queue, and a thread that stores what waits in it, batch after batch.

There is no timer: what arrived while one batch was stored is the next one. Requests are stored in their order.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from krea_data.krablet.errors import ShardDown
from krea_data.krablet.funnels.pieces import Piece
from krea_data.krablet.rpc.errors import Busy

__all__ = ["Job", "Lane", "Limits"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How large a batch and a lane's queue may get."""

    batch_rows: int = 2000
    batch_bytes: int = 1 << 20
    waiting_rows: int = 20_000
    waiting_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if min(self.batch_rows, self.batch_bytes) < 1:
            raise ValueError(f"batches of {self.batch_rows} rows and {self.batch_bytes} bytes hold nothing; use more")


@dataclass(eq=False, slots=True)
class Job:
    """A piece that waits. `done` is told when it is stored, or why it is not; `kept` must be stored, however long."""

    piece: Piece
    size: int  # bytes, about
    done: Callable[[Exception | None], None]
    kept: bool = False
    came: float = 0.0


class Lane:
    """Stores jobs by `write`, which takes the pieces of a batch and stores each one or raises for all."""

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[Piece]], None],
        limits: Limits,
        settle: Callable[[Sequence[tuple[Job, Exception | None]]], None],
    ) -> None:
        self.name = name
        self.rows = self.bytes = self.batches = self.stored = 0
        self.rate = 20_000.0  # rows a second, as measured lately
        self._write, self._limits, self._settle = write, limits, settle
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def age_s(self) -> float:
        """For how long the oldest job has waited."""
        with self._changed:
            return time.monotonic() - self._waiting[0].came if self._waiting else 0.0

    def check_room(self, rows: int, size: int) -> None:
        """`Busy` unless so much more may wait; an empty lane takes anything."""
        limits = self._limits
        if self.rows and (self.rows + rows > limits.waiting_rows or self.bytes + size > limits.waiting_bytes):
            retry_s = min(10.0, max(0.005, 0.5 * self.rows / self.rate))
            raise Busy(f"{self.rows} rows wait for {self.name}; try again in {retry_s:.3f} s", retry_s)

    def submit(self, job: Job) -> None:
        """Queue a job, whether there is room or not."""
        job.came = time.monotonic()
        with self._changed:
            if self._closed:
                raise Busy(f"{self.name} is closed", 0.2)
            self._waiting.append(job)
            self.rows += len(job.piece.rows.ids)
            self.bytes += job.size
            self._changed.notify_all()

    def close(self) -> None:
        """Store what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._batch():
            started = time.monotonic()
            rows, error = sum(len(job.piece.rows.ids) for job in batch), None
            try:
                self._write([job.piece for job in batch])
            except Exception as failed:  # noqa: BLE001 - the lane must live on; every caller is told
                error = failed
                if not isinstance(failed, ShardDown):
                    _LOG.exception("%s could not store a batch", self.name)
            else:
                self.rate += 0.2 * (rows / max(1e-4, time.monotonic() - started) - self.rate)
            self._end(batch, error)

    def _batch(self) -> list[Job]:
        """The next jobs, as many as fit into one transaction; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch: list[Job] = []
            rows = size = 0
            while self._waiting:
                job = self._waiting[0]
                rows, size = rows + len(job.piece.rows.ids), size + job.size
                if batch and (rows > self._limits.batch_rows or size > self._limits.batch_bytes):
                    break
                batch.append(self._waiting.popleft())
            return batch

    def _end(self, batch: Sequence[Job], error: Exception | None) -> None:
        """Answer the jobs; those that must be stored go back to the front, unless the lane ends."""
        with self._changed:
            back = [job for job in batch if error is not None and job.kept and not self._closed]
            self._waiting.extendleft(reversed(back))
            gone = [job for job in batch if job not in back] if back else batch
            self.rows -= sum(len(job.piece.rows.ids) for job in gone)
            self.bytes -= sum(job.size for job in gone)
            self.batches += error is None
            self.stored += 0 if error else sum(len(job.piece.rows.ids) for job in gone)
        self._settle([(job, error) for job in gone])
        if error is not None and any(job.kept for job in gone):
            _LOG.error("%s ends with writes that are not stored: %s", self.name, error)
        if back:
            time.sleep(0.2)
