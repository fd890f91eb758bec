"""An event loop on a thread of its own, for callers that have none."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["LoopThread", "new_loop"]

T = TypeVar("T")


def new_loop() -> asyncio.AbstractEventLoop:
    """A uvloop where that is installed, else asyncio's own."""
    try:
        import uvloop  # optional
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class LoopThread:
    """Runs coroutines for other threads until `stop`. A forked child has none of it: see `mine`."""

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self.loop = new_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def mine(self) -> bool:
        """Whether the loop runs in this process."""
        return self._pid == os.getpid()

    @property
    def over(self) -> bool:
        """Whether the loop has ended, or is another process's."""
        return self.loop.is_closed() or not self.mine

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Begin `work` on the loop; RuntimeError if it has ended."""
        if self.over:
            work.close()  # or Python complains that nobody awaited it
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` on the loop, wait for it and return its result; an interrupt cancels it."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def post(self, work: Callable[[], object]) -> None:
        """Call `work` on the loop, soon."""
        self.loop.call_soon_threadsafe(work)

    def stop(self) -> None:
        """End the loop; what still runs on it is cancelled."""
        if not self.mine or self.loop.is_closed():
            return
        self.post(self.loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
