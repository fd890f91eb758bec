"""What a task may take of a worker: rows at once, bytes read ahead, memory and time in a process of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from krea_data.interfaces import Task

__all__ = ["Limits", "limits_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one task. A task may declare each of them as an attribute of the same name.

    An isolated task runs in a child process: rows that crash it, or take more memory or time, fail by themselves. Other
    tasks run in the worker, where a limit on memory has no effect, and one on time ends the worker's hold on its rows.
    """

    batch: int = 100  # rows of a call at most
    prefetch_bytes: int = 256 << 20  # of the next batch's blobs, read during this one; 0 claims nothing ahead
    isolated: bool = False
    memory_bytes: int | None = None  # beyond what the process has once the task is loaded
    timeout_s: float = 300.0  # from the call, or from the last blob that it read

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("prefetch_bytes", 0), ("memory_bytes", 1)):
            value = getattr(self, name)
            if (type(value) is not int or value < least) and not (name == "memory_bytes" and value is None):
                raise ValueError(f"{name} is {value!r}; use a whole number of {least} or more")
        if not isinstance(self.isolated, bool):
            raise ValueError(f"isolated is {self.isolated!r}; use True or False")
        if not isinstance(self.timeout_s, int | float) or not 0 < self.timeout_s < 1e7:
            raise ValueError(f"timeout_s is {self.timeout_s!r}; use seconds between 0 and 10,000,000")


def limits_of(task: Task, given: Mapping[str, Any], batch: int) -> Limits:
    """The limits in force: those `given` by name, then those that the task declares, then the usual ones with `batch`.

    ValueError names a task with what is no limit.
    """
    names = [field.name for field in fields(Limits)]
    if unknown := sorted(given.keys() - set(names)):
        raise ValueError(f"task {task.name} is given {', '.join(unknown)}; the limits are {', '.join(names)}")
    declared = {name: getattr(task, name) for name in names if hasattr(task, name)}
    try:
        return Limits(**{"batch": batch, **declared, **given})
    except ValueError as error:
        raise ValueError(f"task {task.name} has a limit that is none: {error}") from error
