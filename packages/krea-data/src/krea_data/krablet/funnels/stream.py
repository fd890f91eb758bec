"""The client's half of a funnel: writes to one target are joined while a request is on its way, then sent together.

A stream is a producer: its requests are numbered, and sent again under the same number until the funnel answers, so
each is stored exactly once whatever breaks. A request is sent after those before it.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeAlias
from uuid import uuid4

from krea_data.krablet.records.rules import REPLACE, Record, Write, joined
from krea_data.krablet.rpc.client import Client
from krea_data.krablet.rpc.errors import Broken, Busy

__all__ = ["Batch", "Stream", "refusal"]

Outcome: TypeAlias = "asyncio.Future[Mapping[str, str]] | Future[Mapping[str, str]]"
_PAUSE_S = 0.02
_SMALL = 32  # writes that are not worth a request of their own while others wait
_NOTHING: Mapping[str, str] = {}


class Batch:
    """Writes that become one request; its future holds the refused ids, once the rest is acknowledged.

    `waiting` are futures of single writes with their ids, for callers on the loop.
    """

    __slots__ = ("future", "rows", "sent", "seq", "waiting", "writes")

    def __init__(self, future: Outcome) -> None:
        self.future = future
        self.rows: dict[str, Write] = {}
        self.writes = 0
        self.seq = -1
        self.sent = False
        self.waiting: list[tuple[str, asyncio.Future[None]]] = []

    def end(self, error: Exception | None, refused: Mapping[str, str]) -> None:
        """Tell everybody who waits."""
        if not self.future.done():
            if error is not None:
                self.future.set_exception(error)
                self.future.exception()  # nobody may ask
            else:
                self.future.set_result(refused)
        for row_id, future in self.waiting:
            if future.done():
                continue
            if error is None and row_id not in refused:
                future.set_result(None)
            else:
                future.set_exception(error or refusal(row_id, refused[row_id]))


def refusal(row_id: str, why: str) -> ValueError:
    """What the caller gets for a row that was refused."""
    return ValueError(f"{row_id!r:.80} was refused: {why}")


class Stream:
    """The writes of one client to one target. `add` may be called from any thread, the rest runs on the loop."""

    def __init__(
        self,
        client: Client,
        target: str,
        record: Record,
        loop: asyncio.AbstractEventLoop,
        new_future: Callable[[], Outcome],
        *,
        ack: str,
        batch_rows: int,
        requests: int,
        patience_s: float,
    ) -> None:
        self.target, self.record = target, record
        self.rows = 0  # that wait or are on their way
        self._lock = threading.Lock()
        self.room = threading.Condition(self._lock)
        self._client, self._loop, self._new_future = client, loop, new_future
        self._ack, self._batch_rows, self._requests, self._patience_s = ack, batch_rows, requests, patience_s
        self._joins = record.joins
        self._producer = uuid4().bytes
        self._seq = 0
        self._pending: deque[Batch] = deque()
        self._flying: dict[int, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._kicked = False
        self._open = 0  # writes that wait or are on their way, before they are joined
        self._peak = 0.0  # of that, lately; shared out over the requests, so that they take turns
        self._goal = _SMALL
        self._last = Batch(new_future())  # where a write goes, unless it is full or gone
        self._last.seq = 0
        self._replaces = target.startswith("result:")

    def add(self, row_id: str, values: Mapping[str, Any] | None) -> Batch:
        """Join a write (None: delete) to what waits and return its batch; ValueError for what cannot be stored."""
        write = self.record.write(row_id, values)
        if self._replaces:
            write[0] = REPLACE
        with self._lock:
            batch = self._last
            if batch.seq >= 0 or batch.writes >= self._goal or len(batch.rows) >= self._batch_rows:
                self._peak = max(self._open, 0.9 * self._peak)
                self._goal = max(_SMALL, 1 + int(self._peak) // self._requests)
                batch = self._last = Batch(self._new_future())
                self._pending.append(batch)
            batch.writes += 1
            self._open += 1
            old = batch.rows.get(row_id)
            if old is None:
                batch.rows[row_id] = write
                self.rows += 1
            else:
                batch.rows[row_id] = joined(self._joins, old, write)
            if self._kicked:
                return batch
            self._kicked = True
        self._loop.call_soon_threadsafe(self._kick)
        return batch

    def batches(self) -> list[Batch]:
        """All that are not acknowledged."""
        with self._lock:
            return [*self._flying.values(), *self._pending]

    def fail(self, error: Exception) -> None:
        """Give up all that is not acknowledged."""
        for task in self._tasks:
            task.cancel()
        for batch in self.batches():
            self._end(batch, error)

    def _kick(self) -> None:
        """Send what waits, as far as requests may be on their way."""
        with self._lock:
            self._kicked = False
            ready: list[Batch] = []
            while self._pending and len(self._flying) < self._requests:
                batch = self._pending.popleft()
                batch.seq, self._seq = self._seq, self._seq + 1
                self._flying[batch.seq] = batch
                ready.append(batch)
        for batch in ready:
            task = self._loop.create_task(self._send(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: Batch) -> None:
        body = self._body(batch)
        deadline = time.monotonic() + self._patience_s
        while True:
            while any(seq < batch.seq and not other.sent for seq, other in self._flying.items()):
                await asyncio.sleep(0.002)
            try:
                batch.sent = True
                reply = await self._client.call("write", floor=min(self._flying), **body)
            except (Busy, Broken) as error:
                batch.sent = False
                if time.monotonic() > deadline:
                    self._end(batch, error)
                    return
                await asyncio.sleep(error.retry_after_s if isinstance(error, Busy) else _PAUSE_S)
            except Exception as error:  # noqa: BLE001 - whoever waits is told
                self._end(batch, error)
                return
            else:
                self._end(batch, None, reply["refused"] if reply else _NOTHING)
                return

    def _body(self, batch: Batch) -> dict[str, Any]:
        ops, *columns = zip(*batch.rows.values(), strict=True)
        names = [column.name for column in self.record.columns]
        used = [n for n, column in enumerate(columns) if any(value is not None for value in column)]
        return {
            "producer": self._producer,
            "seq": batch.seq,
            "target": self.target,
            "ack": self._ack,
            "ids": list(batch.rows),
            "ops": ops if any(ops) else None,
            "names": [names[n] for n in used],
            "columns": [columns[n] for n in used],
        }

    def _end(self, batch: Batch, error: Exception | None, refused: Mapping[str, str] = _NOTHING) -> None:
        with self.room:
            self._flying.pop(batch.seq, None)
            if batch in self._pending:
                self._pending.remove(batch)
            self.rows -= len(batch.rows)
            self._open -= batch.writes
            self.room.notify_all()
        batch.end(error, refused)
        if self._pending and not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._kick)
