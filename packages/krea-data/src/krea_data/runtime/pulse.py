"""Leases that last as long as the work: a thread extends those of the rows in hand while there are signs of life."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from types import TracebackType

from krea_data.rows import Claim

__all__ = ["Extend", "Pulse"]

Extend = Callable[[str, Iterable[Claim], float], int]
"""`extend` of a table: a task's name, claims, and how many seconds they are to last from now."""
_log = logging.getLogger(__name__)


class Pulse:
    """Extends leases of `lease_s` every third of it, so that a short lease does for long batches.

    It ends with the signs of life: rows that a worker is stuck on go to others when their lease has run out. A table
    that cannot `extend` gets no pulse; there a lease has to be longer than a batch takes.
    """

    def __init__(self, extend: Extend | None, lease_s: float) -> None:
        self._extend, self._lease_s = extend, lease_s
        self._held: dict[int, tuple[str, Sequence[Claim]]] = {}
        self._numbers = count()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._until = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Pulse":
        if self._extend is not None:
            self._thread = threading.Thread(target=self._beat, args=(self._extend,), name="pulse", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(self._lease_s / 3)

    def alive(self, timeout_s: float) -> None:
        """A sign of life: leases are extended for the next `timeout_s`."""
        self._until = max(self._until, time.monotonic() + timeout_s)

    def hold(self, task: str, claims: Sequence[Claim]) -> int:
        """Extend these from now on; the answer is for `drop`."""
        number = next(self._numbers)
        with self._lock:
            self._held[number] = (task, claims)
        return number

    def drop(self, number: int) -> None:
        """Extend them no more."""
        with self._lock:
            self._held.pop(number, None)

    def _beat(self, extend: Extend) -> None:
        wait_s = self._lease_s / 3
        while not self._end.wait(wait_s):
            wait_s = self._lease_s / 3
            if time.monotonic() >= self._until:
                continue
            with self._lock:
                held = list(self._held.values())
            try:
                for task, claims in held:
                    extend(task, claims, self._lease_s)
            except Exception as error:  # noqa: BLE001 - the next beat may come through, and the work goes on anyway
                _log.warning("leases could not be extended: %s", error)
                wait_s = self._lease_s / 12
