"""How a worker ends: asked once it finishes the batch in hand, asked twice or interrupted it drops everything."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["draining"]


@contextmanager
def draining(stop: threading.Event) -> Iterator[Callable[[], bool]]:
    """Let `stop`, or SIGTERM in the main thread, ask for the end; what is given tells whether somebody did.

    A second SIGTERM raises SystemExit at once. The handler takes no lock, since it runs in the middle of anything.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, ask) if main else None
    try:
        yield lambda: bool(asked) or stop.is_set()
    finally:
        if main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
