"""A child process that calls the function, so that it may exit, fork, sleep for ever or use up all memory.

The worker forks it before anything is unpickled. Pages go in as pickled rows; what comes back is JSON, so that nothing
the function made is ever unpickled. A page may be of several batches: the child answers after the first of them, or
after those that it gets through in a few milliseconds, and forgets the rest. Whatever happens to the child is told as
`Failed`, and the next page gets a new one.
"""

import contextlib
import fcntl
import json
import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from krea_data.krablet.errors import KrabletError
from krea_data.krablet.pluck.calls import QUICK_S, Failed, Said, Trouble
from krea_data.krablet.pluck.child import LENGTH, serve
from krea_data.krablet.pluck.question import Limits
from krea_data.krablet.pluck.rows import Raw

__all__ = ["BrokenError", "Hand"]

_LOOK_S = 0.2  # how often to see whether the child is alive: a grandchild may hold its pipe open
_LOAD_S = 600.0
_REPLY_BYTES = 1 << 30
_PIPE_BYTES = 1 << 20  # a page in one piece


class BrokenError(KrabletError):
    """The function cannot work in this worker at all: it cannot be loaded, or lacks a module."""


class Hand:
    """Calls the function in a child. `pulse` is called several times a second and may raise to give up."""

    def __init__(self, blob: bytes, into: str, limits: Limits, pulse: Callable[[], None]) -> None:
        self._blob, self._into, self._limits, self._pulse = blob, into, limits, pulse
        self._pid = 0
        self._to = self._from = -1
        self._ready = False

    def load(self) -> None:
        """Let a child load the function; `start` waits for it."""
        if not self._pid:
            self._fork()

    def start(self, rows: Sequence[Raw]) -> None:
        """Hand over a page."""
        self.load()
        if not self._ready:
            try:
                found = self._heard(_LOAD_S, "to be loaded")
            except Failed as error:
                raise BrokenError(f"the function cannot be loaded in the worker: {error}") from error
            if "ready" not in found:
                self.close()
                raise BrokenError(found["broken"])
            self._ready = True
        self._send(rows)

    def finish(self) -> list[Said]:
        """Wait for what is said of the first rows of the page; a child that takes too long is killed."""
        found = self._heard(self._limits.timeout_s, "for a batch", QUICK_S)
        if "broken" in found:
            self.close()
            raise BrokenError(found["broken"])
        if "failed" in found:
            raise Failed(found["failed"])
        return [one if one is None else _said(one) for one in found["said"]]

    def close(self) -> None:
        """End the child and all that it forked."""
        if self._pid:
            self._end()

    def _fork(self) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            serve(parent, theirs_in, theirs_out, self._blob, self._into, self._limits)
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(self._from, False)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a user may have only so much of them
                fcntl.fcntl(self._to, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def _send(self, rows: Sequence[Raw]) -> None:
        body = pickle.dumps([*zip(*rows, strict=True)], pickle.HIGHEST_PROTOCOL)  # by column: half the time
        view = memoryview(LENGTH.pack(len(body)) + body)
        try:
            while view:
                view = view[os.write(self._to, view) :]
        except BrokenPipeError:
            return  # `finish` finds out why

    def _heard(self, limit_s: float, what: str, more_s: float = 0.0) -> dict[str, Any]:
        """The child's next message, or `Failed` after its end has been seen to."""
        started = time.monotonic()
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        body, size = bytearray(), -1
        while True:
            ready = poll.poll(_LOOK_S * 1000)
            piece = self._piece() if ready else b""
            body += piece
            if size < 0 and len(body) >= LENGTH.size:
                size = LENGTH.unpack(body[: LENGTH.size])[0] + LENGTH.size
            if 0 <= size <= len(body):
                return json.loads(body[LENGTH.size : size])
            if size > _REPLY_BYTES:
                self._end()
                raise Failed(f"the function answered with {size >> 20} MiB; put large data in blobs")
            if not piece:
                self._look(ready)
            if time.monotonic() - started > limit_s + more_s:
                self._end()
                raise Failed(f"took longer than {limit_s:g} s {what}")
            self._called()

    def _piece(self) -> bytes:
        try:
            return os.read(self._from, 1 << 20)
        except BlockingIOError:
            return b""

    def _look(self, ready: Any) -> None:
        """`Failed` if the child is no more."""
        gone = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if gone is None:
            if ready:  # it closed its end, and is about to go
                time.sleep(0.005)
            return
        raise Failed(_ended(self._end()))

    def _called(self) -> None:
        try:
            self._pulse()
        except BaseException:
            self._end()
            raise

    def _end(self) -> int:
        """Kill the child's whole group, and return how the child ended."""
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            os.kill(self._pid, signal.SIGKILL)  # it has not made its group yet
        _, status = os.waitpid(self._pid, 0)
        os.close(self._to)
        os.close(self._from)
        self._pid, self._ready = 0, False
        return os.waitstatus_to_exitcode(status)


def _said(one: Any) -> Said:
    return Trouble(one) if isinstance(one, str) else (one[0], one[1])


def _ended(code: int) -> str:
    if code >= 0:
        return f"the process of the function ended with exit code {code}"
    return f"the process of the function was killed by {signal.Signals(-code).name}"
