"""A task that answers in the worker's own process."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Protocol

from krea_data.interfaces import Task
from krea_data.rows import Result, Row
from krea_data.runtime.answering import answers
from krea_data.runtime.cell import Cell
from krea_data.runtime.given import Given
from krea_data.runtime.limits import Limits

__all__ = ["Here", "Runner", "runner"]


class Runner(Protocol):
    """Answers a batch of one task, somewhere."""

    def answers(self, rows: Sequence[Row], blobs: Mapping[str, bytes]) -> Sequence[Result]:
        """One result per row in order; `blobs` are those that were read ahead."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class Here:
    """Calls the task. A frozen dataclass with `blobs` is copied, to be handed what was read ahead."""

    def __init__(self, task: Task, limits: Limits, alive: Callable[[float], None]) -> None:
        self._task, self._timeout_s, self._alive = task, limits.timeout_s, alive
        self._given: Given | None = None
        if _frozen(task) and hasattr(task, "blobs"):
            self._task, self._given = copy.copy(task), Given(_blobs(task), lambda key: alive(limits.timeout_s))
            object.__setattr__(self._task, "blobs", self._given)

    def answers(self, rows: Sequence[Row], blobs: Mapping[str, bytes]) -> Sequence[Result]:
        """One result per row in order; raises what the task raises, and ValueError for answers that are none."""
        self._alive(self._timeout_s)
        if self._given is not None:
            self._given.hold(blobs)
        return answers(self._task, rows)

    def close(self) -> None:
        """There is nothing to leave."""


def runner(task: Task, limits: Limits, alive: Callable[[float], None]) -> Runner:
    """Where the task's limits want it to run; `alive` is told for how long its work may go on without another sign."""
    return Cell(task, limits, alive) if limits.isolated else Here(task, limits, alive)


def _frozen(task: Task) -> bool:
    return is_dataclass(task) and task.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _blobs(task: Any) -> Any:
    return task.blobs
