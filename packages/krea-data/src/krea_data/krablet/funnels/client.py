"""Write through a funnel: `FunnelClient` from any thread, `AsyncFunnelClient` from a coroutine.

    with FunnelClient("127.0.0.1:7000", token=...) as funnel:
        clicks = funnel.target("record:clicks")
        acks = [clicks.write(user, {"n": 1, "last": page}) for user, page in events]
        funnel.flush()

A write is handed in at once and acknowledged later; its `Ack` raises what went wrong with it. What a connection that
breaks, a funnel that is killed or a shard that restarts leaves open is sent again and stored exactly once.
"""

import asyncio
import ssl
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any, cast

from krea_data.krablet.funnels.intake import ACKS
from krea_data.krablet.funnels.stream import Batch, Stream, refusal
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.rpc.client import Client
from krea_data.krablet.rpc.errors import Busy
from krea_data.krablet.rpc.loop import LoopThread

__all__ = ["Ack", "AsyncFunnelClient", "AsyncTarget", "FunnelClient", "Target"]


_PATIENCE_S = 60.0
_TIMEOUT_S = 30.0


class Ack:
    """The acknowledgement of one write."""

    __slots__ = ("_batch", "_id")

    def __init__(self, batch: Batch, row_id: str) -> None:
        self._batch, self._id = batch, row_id

    def done(self) -> bool:
        """Whether the funnel has answered."""
        return self._batch.future.done()

    def result(self, timeout_s: float | None = None) -> None:
        """Wait for the acknowledgement; ValueError says why the row was refused, TimeoutError that it takes longer."""
        assert isinstance(self._batch.future, Future)
        _check(self._batch.future.result(timeout_s), self._id)


class AsyncTarget:
    """Where an `AsyncFunnelClient` writes to."""

    def __init__(self, stream: Stream, waiting_rows: int) -> None:
        self._stream, self._waiting_rows = stream, waiting_rows
        self._loop = asyncio.get_running_loop()

    @property
    def record(self) -> Record:
        """The columns, and their rules."""
        return self._stream.record

    def submit(self, row_id: str, values: Mapping[str, Any] | None) -> "asyncio.Future[None]":
        """Hand in a write, or None to delete the row; the future ends with its acknowledgement, or says why not.

        ValueError for what cannot be stored, `Busy` for too much at once.
        """
        if self._stream.rows >= self._waiting_rows:
            raise Busy(f"{self._stream.rows} rows wait for {self._stream.target}; await some of them", 0.01)
        future: asyncio.Future[None] = self._loop.create_future()
        self._stream.add(row_id, values).waiting.append((row_id, future))
        return future

    async def write(self, row_id: str, values: Mapping[str, Any] | None) -> None:
        """Write and wait for the acknowledgement."""
        await self.submit(row_id, values)


class Target:
    """Where a `FunnelClient` writes to."""

    def __init__(self, stream: Stream, waiting_rows: int) -> None:
        self._stream, self._waiting_rows = stream, waiting_rows

    @property
    def record(self) -> Record:
        """The columns, and their rules."""
        return self._stream.record

    def write(self, row_id: str, values: Mapping[str, Any] | None) -> Ack:
        """Hand in a write, or None to delete the row; waits while too much waits."""
        stream = self._stream
        if stream.rows >= self._waiting_rows:
            with stream.room:
                stream.room.wait_for(lambda: stream.rows < self._waiting_rows)
        return Ack(stream.add(row_id, values), row_id)


class AsyncFunnelClient:
    """A client of a funnel on an event loop; made by `connect`.

    `ack` is when a write is acknowledged: "committed", "journaled" (on the funnel's disk) or "accepted" (in its
    memory). `requests` may be on their way at once for each target, of at most `batch_rows` rows. For `patience_s` a
    request is sent again, and a funnel that is not there looked for.
    """

    def __init__(
        self,
        client: Client,
        *,
        ack: str = ACKS[0],
        requests: int = 2,
        batch_rows: int = 2000,
        waiting_rows: int = 20_000,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        if ack not in ACKS:
            raise ValueError(f"ack {ack!r} is none of {ACKS}")
        if min(requests, batch_rows, waiting_rows) < 1:
            raise ValueError(f"requests {requests}, batch_rows {batch_rows} and waiting_rows {waiting_rows}: all >= 1")
        self.client = client
        self._ack, self._requests, self._batch_rows, self._patience_s = ack, requests, batch_rows, patience_s
        self.waiting_rows = waiting_rows
        self.streams: dict[str, Stream] = {}

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float | None = _TIMEOUT_S,
        **options: Any,
    ) -> "AsyncFunnelClient":
        """A connected client; options are those of the class.

        A request without an answer after `timeout_s` is sent again, on another connection if nothing came on this one.
        """
        patience_s = options.get("patience_s", _PATIENCE_S)
        client = await Client.connect(
            address, token=token, tls=tls, name="funnel client", patience_s=patience_s, timeout_s=timeout_s
        )
        return cls(client, **options)

    async def __aenter__(self) -> "AsyncFunnelClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def declare(self, record: Record) -> None:
        """Give all shards the table of a record; columns may be added to one that is there."""
        columns = [[column.name, column.type, column.rule] for column in record.columns]
        await self.client.repeat("declare", name=record.name, columns=columns)

    async def target(self, name: str) -> AsyncTarget:
        """Where to write: "record:NAME" or "result:TASK"; LookupError for a record that was not declared."""
        return AsyncTarget(await self.stream(name, asyncio.get_running_loop().create_future), self.waiting_rows)

    async def stream(self, name: str, new_future: Any) -> Stream:
        """The one stream of a target."""
        if name not in self.streams:
            columns = await self.client.repeat("describe", target=name)
            record = Record(name.partition(":")[2], tuple(Column(*column) for column in columns))
            self.streams.setdefault(
                name,
                Stream(
                    self.client,
                    name,
                    record,
                    asyncio.get_running_loop(),
                    new_future,
                    ack=self._ack,
                    batch_rows=self._batch_rows,
                    requests=self._requests,
                    patience_s=self._patience_s,
                ),
            )
        return self.streams[name]

    async def flush(self) -> None:
        """Wait until all that was handed in is answered for; what was refused is said by its ack."""
        batches = [batch for stream in self.streams.values() for batch in stream.batches()]
        if batches:
            await asyncio.wait([cast("asyncio.Future[Any]", batch.future) for batch in batches])

    async def close(self) -> None:
        """Flush, then end the connection."""
        await self.flush()
        await self.client.close()


class FunnelClient:
    """A client of a funnel for threads; takes what `AsyncFunnelClient.connect` takes, and connects at once."""

    def __init__(
        self, address: str, *, token: str | None = None, tls: ssl.SSLContext | None = None, **options: Any
    ) -> None:
        self._thread = LoopThread("funnel client")
        try:
            self._inner = self._thread.run(AsyncFunnelClient.connect(address, token=token, tls=tls, **options))
        except BaseException:
            self._thread.stop()
            raise

    def __enter__(self) -> "FunnelClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def declare(self, record: Record) -> None:
        """As `AsyncFunnelClient.declare`."""
        self._thread.run(self._inner.declare(record))

    def target(self, name: str) -> Target:
        """As `AsyncFunnelClient.target`."""
        return Target(self._thread.run(self._inner.stream(name, Future)), self._inner.waiting_rows)

    def status(self) -> dict[str, Any]:
        """How the funnel stands."""
        return self._thread.run(self._inner.client.repeat("status"))

    def flush(self) -> None:
        """Wait until all that was handed in is answered for; what was refused is said by its ack."""
        batches = [batch for stream in self._inner.streams.values() for batch in stream.batches()]
        wait_for([batch.future for batch in batches if isinstance(batch.future, Future)])

    def close(self) -> None:
        """Flush, then end the connection."""
        if self._thread.mine and not self._thread.loop.is_closed():
            self.flush()
            self._thread.run(self._inner.client.close())
            self._thread.stop()


def _check(refused: Mapping[str, str], row_id: str) -> None:
    if row_id in refused:
        raise refusal(row_id, refused[row_id])
