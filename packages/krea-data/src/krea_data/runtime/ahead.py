"""The next batch, claimed and read while a task works on the one in hand."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from krea_data.interfaces import Task
from krea_data.rows import Claim
from krea_data.runtime.limits import Limits

__all__ = ["Ahead", "Turn"]

_LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A claimed batch of one task with the blobs that were read for it. `hold` is its number in the pulse."""

    task: Task
    limits: Limits
    claims: Sequence[Claim]
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    hold: int = 0

    @property
    def may_be_followed(self) -> bool:
        """Whether another batch may be claimed beside this one.

        Not beside rows that failed before: if one of them kills this worker, the others would pay an attempt each time.
        """
        safe = self.limits.isolated or all(claim.attempt == 1 for claim in self.claims)
        return safe and self.limits.prefetch_bytes > 0


class Ahead:
    """Calls `feed`, which claims and reads, in a thread of its own; never more than one batch ahead."""

    def __init__(self, feed: Callable[[], Turn | None]) -> None:
        self._feed = feed
        self._thread: threading.Thread | None = None
        self._found: Turn | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin with the next batch."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
            self._thread.start()

    def take(self, stopping: Callable[[], bool]) -> Turn | None:
        """The next batch, or None where there is none now or while waiting for it `stopping` came true.

        Raises what `feed` raised.
        """
        if self._thread is not None:
            while self._thread.is_alive() and not stopping():
                self._thread.join(_LOOK_S)
            if self._thread.is_alive():
                return None
            self._thread = None
            found, error, self._found, self._error = self._found, self._error, None, None
            if error is not None:
                raise error
            if found is not None:
                return found
        return self._feed()  # what was found empty may have filled while the batch in hand was finished

    def end(self, patience_s: float) -> bool:
        """Wait for what was started, and forget it; whether there was a batch that nobody took."""
        if self._thread is None:
            return False
        self._thread.join(patience_s)
        left = self._thread.is_alive() or self._found is not None
        self._thread = None
        return left

    def _work(self) -> None:
        try:
            self._found = self._feed()
        except BaseException as error:  # noqa: BLE001 - raised where the batch is asked for
            self._error = error
