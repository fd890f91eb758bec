"""Workers that wait for rows: of all that wait for one task only the first in line asks the database."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["Turns"]

T = TypeVar("T", bound=list)
_FIRST_S, _LONGEST_S = 0.02, 0.5  # between two looks


class Turns:
    """The lines, one a task. Belongs to one event loop."""

    def __init__(self) -> None:
        self._heads: dict[str, asyncio.Lock] = {}
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Something was written through this server: whoever waits should look now."""
        self._news.set()

    async def first(self, task: str, look: Callable[[], Awaitable[T]], wait_s: float) -> T:
        """What `look` finds as soon as that is something, or nothing after `wait_s`."""
        deadline = time.monotonic() + wait_s
        found = await look()
        if found or wait_s <= 0:
            return found
        head = self._heads.setdefault(task, asyncio.Lock())
        try:
            await asyncio.wait_for(head.acquire(), wait_s)
        except TimeoutError:
            return found
        try:
            return await self._patiently(look, deadline)
        finally:
            head.release()

    async def _patiently(self, look: Callable[[], Awaitable[T]], deadline: float) -> T:
        pause_s = _FIRST_S
        while True:
            self._news.clear()
            found = await look()
            left_s = deadline - time.monotonic()
            if found or left_s <= 0:
                return found
            try:
                await asyncio.wait_for(self._news.wait(), min(left_s, pause_s * random.uniform(0.7, 1.3)))
            except TimeoutError:
                pause_s = min(2 * pause_s, _LONGEST_S)
