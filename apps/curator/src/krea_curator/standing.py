"""How far the work is: what the queues say now, and what will still come down from the tasks before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from krea_data.interfaces import Task
from krea_data.rows import Stats

__all__ = ["Standing", "standing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One task: rows answered or given up on, rows waiting or in work, and the rows it should have seen in the end."""

    task: str
    done: int
    backlog: int
    dead: int
    expected: int


def standing(stats: Mapping[str, Stats], tasks: Sequence[Task]) -> list[Standing]:
    """Where each task is. What a task before it has yet to hand on is estimated from the share it kept so far."""
    found: dict[str, Standing] = {}
    waiting = list(tasks)
    while waiting:
        ready = [task for task in waiting if not set(task.after) & {other.name for other in waiting}]
        if not ready:
            names = ", ".join(task.name for task in waiting)
            raise ValueError(f"the tasks {names} wait for each other; break the circle")
        for task in ready:
            found[task.name] = _one(task, stats, found)
        waiting = [task for task in waiting if task.name not in found]
    return [found[task.name] for task in tasks]


def _one(task: Task, stats: Mapping[str, Stats], before: Mapping[str, Standing]) -> Standing:
    mine = stats.get(task.name, Stats())
    known = [name for name in task.after if name in before]
    arriving = min((_handed_on(before[name], stats.get(name, Stats())) for name in known), default=0.0)
    backlog = mine.queued + mine.leased
    seen = mine.done + mine.dead
    return Standing(
        task=task.name, done=mine.done, backlog=backlog, dead=mine.dead, expected=seen + backlog + round(arriving)
    )


def _handed_on(before: Standing, stats: Stats) -> float:
    kept = stats.kept / stats.done if stats.done else 1.0
    return (before.expected - before.done - before.dead) * kept
