"""Ctrl-C while modules are imported, and SIGTERM as Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["at_once", "sigterm_as_ctrl_c"]


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, Ctrl-C ends the process without a word: in an import the exception is shown as a traceback, or lost."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
