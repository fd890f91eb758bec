"""Worker processes: started, replaced when killed, and let go one batch later when somebody asks them to end.

A worker ends with its standard input, so that none outlives a pool that was killed.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Pool", "WorkerError", "watch"]

_DEATHS = 20  # in a row without an answered row in between: these workers will never get anywhere
_LOOK_S = 0.1


class WorkerError(RuntimeError):
    """A worker gave up, or workers are killed as fast as they are started; the message ends with its last words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    log: Path

    def let_go(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()


class Pool:
    """`workers` processes of one command; their words go to files in `logs`."""

    def __init__(self, command: Sequence[str], workers: int, logs: Path) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers; use at least 1")
        logs.mkdir(parents=True, exist_ok=True)
        self.restarts = 0
        self._command = list(command)
        self._deaths, self._mark = 0, -1
        self._draining = False
        self._children = [self._start(logs / f"{number}.log") for number in range(workers)]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """The workers that are alive."""
        return [child.process.pid for child in self._children if child.process.poll() is None]

    def tend(self, mark: int) -> bool:
        """Replace workers that were killed; whether any is still at work. `mark` grows with every answered row."""
        if mark != self._mark:
            self._deaths, self._mark = 0, mark
        for place, child in enumerate(self._children):
            code = child.process.poll()
            if code is None or code == 0 or (self._draining and code < 0):
                continue
            said = _last_line(child.log)
            if code > 0:
                raise WorkerError(said or f"a worker ended with code {code}; see {child.log}")
            self._deaths += 1
            if self._deaths >= _DEATHS:
                raise WorkerError(
                    f"{self._deaths} workers in a row were killed (signal {-code}) before they finished a row; "
                    f"is there enough memory? See {child.log}"
                )
            self.restarts += 1
            child.let_go()
            self._children[place] = self._start(child.log)
        return bool(self.pids)

    def drain(self) -> None:
        """Ask the workers to end after the batch in hand."""
        self._draining = True
        for child in self._children:
            child.let_go()

    def stop(self, patience_s: float = 10.0) -> None:
        """End the workers now; they give back the rows in hand. Who does not within `patience_s` is killed."""
        self.drain()
        for child in self._children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + patience_s
        for child in self._children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def _start(self, log: Path) -> _Child:
        with log.open("ab") as words:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=words,
                start_new_session=True,  # Ctrl-C is for the pool alone, which passes it on as it sees fit
            )
        return _Child(process=process, log=log)


def watch(pool: Pool, look: Callable[[], int], on_drain: Callable[[], None] = lambda: None) -> bool:
    """Tend the pool until its workers have ended; False if they were interrupted.

    The first KeyboardInterrupt drains, the second stops at once. `look` returns how many rows have been answered; it
    is called about once a second, and less often if it takes long.
    """
    interrupted = False
    mark, next_look = 0, 0.0
    while True:
        try:
            start = time.monotonic()
            if start >= next_look:
                mark = look()
                next_look = time.monotonic() + max(1.0, 10 * (time.monotonic() - start))
            if not pool.tend(mark):
                look()
                return not interrupted
            time.sleep(_LOOK_S)
        except KeyboardInterrupt:
            if interrupted:
                pool.stop()
                return False
            interrupted = True
            on_drain()
            pool.drain()


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else ""
