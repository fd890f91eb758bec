"""Single gets that come at the same time become one statement.

There is no timer: a get that finds the shard free goes out in the same turn of the event loop, and those that come
while `flights` batches are on their way are the next batch. A batch never takes in a get that came after it was sent,
so whoever reads after a write has returned sees it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

__all__ = ["Gets"]

V = TypeVar("V")


class Gets(Generic[V]):
    """Gathers gets for `fetch`, which returns what it finds by key. Belongs to one event loop."""

    def __init__(
        self,
        fetch: Callable[[Sequence[str]], Awaitable[Mapping[str, V]]],
        *,
        batch_keys: int = 200,
        flights: int = 2,
    ) -> None:
        self._fetch = fetch
        self._batch_keys, self._flights = batch_keys, flights
        self._waiting: dict[str, list[asyncio.Future[V | None]]] = {}
        self._flying: set[asyncio.Task[None]] = set()
        self._due = False
        self.batches = 0  # sent so far

    async def get(self, key: str) -> V | None:
        """What is there under the key, or None."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V | None] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if not self._due and len(self._flying) < self._flights:
            self._due = True
            loop.call_soon(self._start)
        return await future

    def _start(self) -> None:
        self._due = False
        while self._waiting and len(self._flying) < self._flights:
            keys = list(self._waiting)[: self._batch_keys]
            flight = asyncio.ensure_future(self._fly({key: self._waiting.pop(key) for key in keys}))
            self._flying.add(flight)
            flight.add_done_callback(self._landed)

    def _landed(self, flight: "asyncio.Task[None]") -> None:
        self._flying.discard(flight)
        self._start()

    async def _fly(self, batch: Mapping[str, list["asyncio.Future[V | None]"]]) -> None:
        self.batches += 1
        found: Mapping[str, V] = {}
        failed: BaseException | None = None
        try:
            found = await self._fetch(list(batch))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - every caller is told
            failed = error
        for key, futures in batch.items():
            for future in futures:
                if future.done():
                    continue
                if failed is None:
                    future.set_result(found.get(key))
                elif isinstance(failed, asyncio.CancelledError):
                    future.cancel()
                else:
                    future.set_exception(failed)
