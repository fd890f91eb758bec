"""The worker processes that a caller started: those that are killed are replaced, and all go with the caller."""

import contextlib
import os
import platform
import select
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from krea_data.krablet.errors import KrabletError
from krea_data.krablet.pluck.orders import CANNOT, Orders

__all__ = ["Crew"]

_DEATHS = 20  # in a row, without a page being stored: more than any row that kills its workers needs
_STOP_S = 30.0
_LINGER_S = 5.0  # a statement that a killed worker had sent may still lease a range to it
_LOOK_S = 0.05  # how soon `rest` hears that it is to end
_PACKAGE = Path(__file__).parents[3]  # where krea_data is imported from


@dataclass(slots=True)
class _Mate:
    name: str
    process: "subprocess.Popen[bytes]"


@dataclass(slots=True)
class Crew:
    """Processes on this machine that work on the map `name`. `lost` is told the name of each that was killed."""

    name: str
    dsns: Sequence[str]
    key_file: Path
    lost: Callable[[str], None]
    problem: str | None = None  # why one of them could not take part
    _mates: list[_Mate] = field(default_factory=list)
    _size: int = 0
    _deaths: int = 0
    _gone: dict[str, float] = field(default_factory=dict)  # the killed, and until when they are remembered
    _log: Path | None = None

    def start(self, workers: int) -> None:
        """Start so many more, which get ready and wait for `order`."""
        if self._log is None and workers:
            handle, path = tempfile.mkstemp(prefix="pluck-", suffix=".log")
            os.close(handle)
            self._log = Path(path)
        self._size += workers
        for _ in range(workers):
            self._mates.append(self._started())

    def order(self) -> None:
        """Let those that were started begin: the map is there."""
        for mate in self._mates:
            self._order(mate)

    def again(self) -> None:
        """Start as many as were started, when all have ended: there is work again."""
        self._mates += [self._order(self._started()) for _ in range(self._size)]

    def rest(self, pause_s: float, ended: threading.Event) -> None:
        """Wait for so long, or until all workers have gone of their own accord, or until `ended`."""
        poll, there = select.poll(), {mate.process.stdin.fileno() for mate in self._mates if mate.process.stdin}
        for number in there:
            poll.register(number, 0)  # tells when the other end is gone
        until = time.monotonic() + pause_s
        while not ended.is_set() and (left_s := until - time.monotonic()) > 0:
            for number, _ in poll.poll(1000 * min(left_s, _LOOK_S)):
                poll.unregister(number)
                there.discard(number)
                if not there and all(mate.process.poll() in (None, 0, CANNOT) for mate in self._mates):
                    return

    def tend(self, *, moving: bool) -> int:
        """See to those that ended, and return how many work; `moving`: a page was stored since the last time.

        `KrabletError` where workers are killed again and again.
        """
        self._deaths = 0 if moving else self._deaths
        for name, until in list(self._gone.items()):
            self.lost(name)
            if time.monotonic() > until:
                del self._gone[name]
        for mate in list(self._mates):
            code = mate.process.poll()
            if code is None:
                continue
            self._mates.remove(mate)
            _closed(mate)
            if code == CANNOT:
                self.problem = self.problem or self._said()
            elif code:
                self.lost(mate.name)
                self._gone[mate.name] = time.monotonic() + _LINGER_S
                self._deaths += 1
                if self._deaths > _DEATHS:
                    raise KrabletError(
                        f"{self._deaths} workers in a row ended ({_how(code)}) before a page was stored; what was done"
                        f" is stored, and the map can be resumed. The last words: {self._said()}"
                    )
                self._mates.append(self._order(self._started()))
        return len(self._mates)

    def stop(self) -> None:
        """Let them give back what they hold and go; kill those that do not."""
        for mate in self._mates:
            _closed(mate)
        for mate in self._mates:
            try:
                mate.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                mate.process.kill()
                mate.process.wait()
                self.lost(mate.name)
        self._mates.clear()
        if self._log is not None:
            self._log.unlink(missing_ok=True)
            self._log = None

    @property
    def pids(self) -> list[int]:
        """Of those that are there."""
        return [mate.process.pid for mate in self._mates]

    def _started(self) -> _Mate:
        name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        path = os.pathsep.join([str(_PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
        assert self._log is not None
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "krea_data.krablet.pluck.worker", "--stdin"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # an interrupt in the terminal is the caller's to handle
            )
        return _Mate(name, process)

    def _order(self, mate: _Mate) -> _Mate:
        given = {"name": self.name, "dsns": list(self.dsns), "key_file": str(self.key_file), "path": list(sys.path)}
        orders = Orders(worker=mate.name, **given)
        assert mate.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once: `tend` says how
            mate.process.stdin.write(orders.line.encode() + b"\n")
            mate.process.stdin.flush()
        return mate

    def _said(self) -> str:
        """The last line that any of them wrote."""
        lines = self._log.read_text("utf-8", "replace").strip().splitlines() if self._log else []
        return lines[-1] if lines else "none"


def _closed(mate: _Mate) -> None:
    if mate.process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            mate.process.stdin.close()


def _how(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code}"
