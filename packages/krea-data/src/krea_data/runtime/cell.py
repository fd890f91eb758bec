"""An isolated task: it answers in a child process, which may crash, hang or swell without harm to the worker.

The child is a new program, not a fork of this one with its threads. It lives from batch to batch, and is started again
after it died.
"""

import contextlib
import json
import pickle
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krea_data.interfaces import Task
from krea_data.rows import Result, Row
from krea_data.runtime.child import OUT_OF_MEMORY
from krea_data.runtime.limits import Limits
from krea_data.runtime.process import Process

__all__ = ["Cell", "Died", "StartError", "TaskFailed"]

_START_S = 300.0  # loading a task may mean loading a model
_LEAVE_S = 2.0
_LOOK_MS = 100
_ANSWER_BYTES = 1 << 30


class StartError(RuntimeError):
    """The process of an isolated task ended before it could take rows; no row is at fault."""


class TaskFailed(Exception):  # noqa: N818 - reads as what happened
    """The task raised; the message is its error's."""


class Died(Exception):  # noqa: N818 - reads as what happened
    """The task's process is gone. `at` is the row whose blob it read last, and None where it read none."""

    def __init__(self, message: str, at: int | None = None) -> None:
        super().__init__(message)
        self.at = at


class Cell:
    """Answers of `task` from a child process; `alive` is told of every sign of life.

    ValueError if the task cannot be sent to another process. `close` ends the process.
    """

    def __init__(self, task: Task, limits: Limits, alive: Callable[[float], None] = lambda timeout_s: None) -> None:
        self._task, self._limits, self._alive = task, limits, alive
        self._load = _pickled(task, limits.memory_bytes)
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """The child's, while there is one."""
        return self._process.pid if self._process is not None else None

    def answers(self, rows: Sequence[Row], blobs: Mapping[str, bytes]) -> list[Result]:
        """One result per row in order; raises `TaskFailed` or `Died`, and `StartError` where no child can be had."""
        process = self._process or self._started()
        wanted = {row.blob: blobs[row.blob] for row in rows if row.blob in blobs}
        try:
            message = self._exchange(
                process, pickle.dumps((rows, wanted), protocol=5), self._limits.timeout_s, len(rows)
            )
        except BaseException:
            self._kill()
            raise
        if "failed" in message:
            raise TaskFailed(str(message["failed"]))
        try:
            return _results(message["said"], len(rows))
        except (KeyError, TypeError, ValueError) as error:
            self._kill()
            raise Died(f"its process gave an answer that is none ({error})") from error

    def close(self) -> None:
        """Let the child go; kill it if it does not."""
        if self._process is not None:
            self._process.leave(_LEAVE_S)
            self._process = None

    def _started(self) -> Process:
        self._process = Process()
        try:
            self._exchange(self._process, self._load, _START_S, 0)
        except Died as error:
            self._kill()
            raise StartError(
                f"task {self._task.name} does not start in a process of its own: {error}; see the log above, and that"
                " its code can be imported there"
            ) from error
        except BaseException:
            self._kill()
            raise
        return self._process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.leave(0)
            self._process = None

    def _exchange(self, process: Process, body: bytes, timeout_s: float, rows: int) -> Mapping[str, Any]:
        """Send a frame and wait for one, as long as there are signs of life."""
        process.post(body)
        seen, since = process.slate, time.monotonic()
        self._alive(timeout_s)
        while True:
            moved = process.turn(_LOOK_MS)
            answer = process.answer(_ANSWER_BYTES)
            if answer is not None:
                return _message(answer)
            slate = process.slate
            if slate != seen or moved == "sent":
                seen, since = slate, time.monotonic()
                self._alive(timeout_s)
            if process.ended:
                raise Died(_how(process.code), _row(process.slate, rows))
            if time.monotonic() - since > timeout_s:
                raise Died(f"its process took more than {timeout_s:g} s", _row(slate, rows))


def _pickled(task: Task, memory_bytes: int | None) -> bytes:
    """The task as it travels, or ValueError."""
    if type(task).__module__ == "__main__":
        raise ValueError(f"task {task.name} is isolated and made in a script; put its code into a module")
    try:
        return pickle.dumps((task, memory_bytes), protocol=5)
    except Exception as error:
        raise ValueError(
            f"task {task.name} is isolated and cannot be sent to another process ({error}); keep in it what can be"
            " pickled and make the rest when it is called, or do not isolate it"
        ) from error


def _message(body: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(body)
    except ValueError as error:
        raise Died(f"its process gave an answer that is none ({error})") from error
    if not isinstance(message, dict):
        raise Died("its process gave an answer that is none")
    return message


def _results(said: Any, rows: int) -> list[Result]:
    results = [Result(value=dict(value), drop=drop) for value, drop in said]
    if len(results) != rows or not all(one.drop is None or isinstance(one.drop, str) for one in results):
        raise ValueError(f"{len(results)} results for {rows} rows")
    return results


def _row(slate: tuple[int, int], rows: int) -> int | None:
    return slate[1] if slate[0] and 0 <= slate[1] < rows else None


def _how(code: int) -> str:
    if code == OUT_OF_MEMORY:
        return "its process ran out of memory"
    if code >= 0:
        return f"its process ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process was killed by signal {-code}"
