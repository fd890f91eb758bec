"""The funnel: how many rows each task saw, kept and dropped, why, and which; a pure function over rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from krea_data.rows import Row

__all__ = ["Step", "funnel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One task's part of the funnel; `seen` counts the rows that came so far and that the task has looked at."""

    task: str
    seen: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)  # by reason, most first
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)  # row ids by reason
    waiting: int = 0  # came so far, and have no result yet


def funnel(rows: Iterable[Row], tasks: Sequence[str], *, examples: int = 8) -> tuple[Step, ...]:
    """The steps in the order of `tasks`; a row counts as dropped once, by the first of them that drops it.

    Examples are spread over the ids of a reason, so that they do not all come from one source.
    """
    kept = dict.fromkeys(tasks, 0)
    waiting = dict.fromkeys(tasks, 0)
    dropped: dict[str, dict[str, list[str]]] = {task: {} for task in tasks}
    for row in rows:
        for task in tasks:
            result = row.results.get(task)
            if result is None:
                waiting[task] += 1
                break
            if result.drop is not None:
                dropped[task].setdefault(result.drop, []).append(row.id)
                break
            kept[task] += 1
    steps: list[Step] = []
    for task in tasks:
        reasons = dict(sorted(dropped[task].items(), key=lambda item: (-len(item[1]), item[0])))
        counts = {reason: len(ids) for reason, ids in reasons.items()}
        shown = {reason: _spread(sorted(ids), examples) for reason, ids in reasons.items()}
        seen = kept[task] + sum(counts.values())
        steps.append(Step(task=task, seen=seen, kept=kept[task], dropped=counts, examples=shown, waiting=waiting[task]))
    return tuple(steps)


def _spread(ids: Sequence[str], count: int) -> tuple[str, ...]:
    """Up to `count` of the ids at even distances."""
    if len(ids) <= count:
        return tuple(ids)
    return tuple(ids[len(ids) * place // count] for place in range(count))
