"""A funnel: many small writes, from any number of threads, become few large ones.

Whatever arrived while one batch was written is the next batch; there is no timer. Writes to the same key are merged
before they are sent, a batch is sorted by key, and a write is acknowledged when its batch is committed. A batch that
the database refuses is halved until what it refuses is alone; the rest is stored. When too much waits, `submit` waits.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from itertools import islice
from typing import Generic, TypeVar

__all__ = ["Funnel", "latest"]

K = TypeVar("K", bound=tuple | str | int)
V = TypeVar("V")


def latest(_: V, new: V) -> V:
    """The merge of two values of which the last writer wins."""
    return new


class _Ticket(Generic[K]):
    """One call of `submit`: how many of its keys are still open, and which were refused."""

    __slots__ = ("future", "left", "refused")

    def __init__(self, keys: int) -> None:
        self.future: Future[dict[K, Exception]] = Future()
        self.left = keys
        self.refused: dict[K, Exception] = {}

    def settle(self, key: K, error: Exception | None) -> None:
        self.left -= 1
        if error is not None:
            self.refused[key] = error
        if not self.left and not self.future.done():
            self.future.set_result(self.refused)


class Funnel(Generic[K, V]):
    """Merges and batches writes for `write`, which stores a batch in one transaction and returns the keys it refused.

    `merge(old, new)` joins two values of one key and must be associative, so that batches may be cut anywhere.
    `write` may raise one of `poison` for a batch that holds something it cannot store.
    """

    def __init__(
        self,
        write: Callable[[Mapping[K, V]], Mapping[K, Exception]],
        *,
        merge: Callable[[V, V], V] = latest,
        poison: tuple[type[Exception], ...] = (ValueError,),
        batch_keys: int = 1000,
        waiting_keys: int = 20_000,
    ) -> None:
        if batch_keys < 1 or waiting_keys < batch_keys:
            raise ValueError(f"batch_keys {batch_keys} must be at least 1 and at most waiting_keys {waiting_keys}")
        self._write = write
        self._merge = merge
        self._poison = poison
        self._batch_keys = batch_keys
        self._waiting_keys = waiting_keys
        self._waiting: dict[K, tuple[V, list[_Ticket[K]]]] = {}
        lock = threading.Lock()
        self._arrived = threading.Condition(lock)
        self._drained = threading.Condition(lock)
        self._closed = False
        self._thread: threading.Thread | None = None
        self.batches = 0  # written so far

    def submit(self, values: Mapping[K, V]) -> "Future[dict[K, Exception]]":
        """Hand in values by key; the future holds the refused keys once all others are committed.

        Waits while too much is waiting. The future raises what `write` raised if it was not about the values.
        """
        ticket: _Ticket[K] = _Ticket(len(values))
        if not values:
            ticket.future.set_result({})
            return ticket.future
        with self._drained:
            self._drained.wait_for(lambda: self._closed or len(self._waiting) < self._waiting_keys)
            if self._closed:
                raise ValueError("this funnel is closed; make another one")
            for key, value in values.items():
                old = self._waiting.get(key)
                if old is None:
                    self._waiting[key] = (value, [ticket])
                else:
                    old[1].append(ticket)
                    self._waiting[key] = (self._merge(old[0], value), old[1])
            if self._thread is None:
                self._thread = threading.Thread(target=self._flow, name="funnel", daemon=True)
                self._thread.start()
            self._arrived.notify()
        return ticket.future

    def close(self) -> None:
        """Write what is waiting, then end; later submits raise ValueError."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
            self._drained.notify_all()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Funnel[K, V]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flow(self) -> None:
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                keys = list(islice(self._waiting, self._batch_keys))
                batch = {key: self._waiting.pop(key) for key in sorted(keys)}
                self._drained.notify_all()
            self._settle(batch)

    def _settle(self, batch: Mapping[K, tuple[V, list[_Ticket[K]]]]) -> None:
        """Write a batch, halving it around what is refused, and answer its tickets."""
        errors: Mapping[K, Exception] = {}
        try:
            errors = self._write({key: value for key, (value, _) in batch.items()})
            self.batches += 1
        except self._poison as error:
            keys = list(batch)
            if len(keys) > 1:
                half = len(keys) // 2
                self._settle({key: batch[key] for key in keys[:half]})
                self._settle({key: batch[key] for key in keys[half:]})
                return
            errors = {keys[0]: error}
        except Exception as error:  # noqa: BLE001 - the flusher must live on; every caller is told
            for ticket in {id(t): t for _, tickets in batch.values() for t in tickets}.values():
                if not ticket.future.done():
                    ticket.future.set_exception(error)
            return
        for key, (_, tickets) in batch.items():
            for ticket in tickets:
                ticket.settle(key, errors.get(key))
