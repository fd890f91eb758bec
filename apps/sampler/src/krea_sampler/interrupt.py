"""Ctrl-C while modules are imported."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["at_once"]


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, Ctrl-C ends the process without a word: in an import the exception is shown as a traceback, or lost."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
