"""The child process of a cell: two pipes, a slate in shared memory, and an end that leaves nothing behind."""

import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
from typing import Literal

from krea_data.runtime.child import LENGTH, SLATE

__all__ = ["Process"]

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from krea_data.runtime.child import serve;"
    " serve(*map(int, sys.argv[2:]))"
)
_CHUNK = 1 << 16


class Process:
    """A running `krea_data.runtime.child`. What is posted is sent, and what is answered read, in `turn`s."""

    def __init__(self) -> None:
        theirs, self._given = os.pipe()
        self._told, answers = os.pipe()
        with tempfile.TemporaryFile() as file:
            file.truncate(SLATE.size)
            self._slate = mmap.mmap(file.fileno(), SLATE.size)
            passed = (theirs, answers, file.fileno())
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, json.dumps(sys.path), *map(str, (os.getpid(), *passed))],
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    pass_fds=passed,
                    env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
                    start_new_session=True,
                )
            except BaseException:
                self._close()
                raise
            finally:
                os.close(theirs)
                os.close(answers)
        os.set_blocking(self._given, False)
        self._poll = select.poll()
        self._poll.register(self._told, select.POLLIN)
        self._out: list[memoryview] = []
        self._in = bytearray()
        self.ended = False

    @property
    def pid(self) -> int:
        """The process."""
        return self._child.pid

    @property
    def code(self) -> int:
        """How it ended: its exit code, or minus the signal."""
        return self._child.returncode

    @property
    def slate(self) -> tuple[int, int]:
        """What the child wrote down last."""
        asked, row = SLATE.unpack_from(self._slate)
        return asked, row

    def post(self, body: bytes) -> None:
        """Have a frame sent; the slate is wiped."""
        SLATE.pack_into(self._slate, 0, 0, -1)
        self._out = [memoryview(LENGTH.pack(len(body))), memoryview(body)]
        self._poll.register(self._given, select.POLLOUT)

    def turn(self, wait_ms: int) -> Literal["sent", "read", ""]:
        """Send or read some, or see that the process `ended`; says what was done."""
        done: Literal["sent", "read", ""] = ""
        events = dict(self._poll.poll(wait_ms))
        if events.get(self._given):
            done = self._send()
        if events.get(self._told):
            data = os.read(self._told, _CHUNK)
            self._in += data
            if data:
                done = "read"
            else:
                self._hung_up()
        self.ended = done == "" and self._child.poll() is not None
        return done

    def answer(self, most_bytes: int) -> bytes | None:
        """The frame that has come in, or None while it has not; ValueError if it is to be longer than `most_bytes`."""
        if len(self._in) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._in)
        if length > most_bytes:
            raise ValueError(f"an answer of {length} bytes is above {most_bytes}")
        if len(self._in) < LENGTH.size + length:
            return None
        body = bytes(self._in[LENGTH.size : LENGTH.size + length])
        del self._in[: LENGTH.size + length]
        return body

    def leave(self, patience_s: float) -> None:
        """End the process, by itself if it does so in time, and whatever it has started."""
        self._close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if patience_s:
                self._child.wait(patience_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _hung_up(self) -> None:
        """The child closed its end: mostly because it is dying, and if not it is of no more use."""
        try:
            self._child.wait(1)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _send(self) -> Literal["sent", ""]:
        try:
            while self._out:
                view = self._out[0]
                sent = os.write(self._given, view)
                if sent < len(view):
                    self._out[0] = view[sent:]
                    return "sent"
                self._out.pop(0)
        except BlockingIOError:
            return "sent"
        except BrokenPipeError:
            self._out = []
        self._poll.unregister(self._given)
        return "sent"

    def _close(self) -> None:
        os.close(self._given)
        os.close(self._told)
        self._slate.close()
