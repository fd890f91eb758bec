"""What follows from a decision: a dropped row goes on as if its task had kept it, a kept row is dropped by `review`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from krea_data.interfaces import Table
from krea_data.rows import Result, Row

__all__ = ["TASK", "decide", "decided"]

TASK = "review"


def decided(row: Row, *, keep: bool, note: str = "", at: float = 0.0) -> tuple[str, Result] | None:
    """The task whose result changes and that result, or None where the row is so already.

    What the task had said stays beside the decision, so that it can be taken back.
    """
    said = {"keep": keep, "note": note, "at": round(at, 3)}
    if keep and row.dropped is not None:
        task, why = row.dropped
        return task, Result(value={**row.results[task].value, "review": {**said, "was": why}})
    if keep or row.dropped is not None:
        return None
    for task, result in row.results.items():  # a row that a person had kept: the task is right after all
        was = result.value.get("review")
        if isinstance(was, dict) and was.get("keep") and was.get("was"):
            return task, Result(value={**result.value, "review": said}, drop=str(was["was"]))
    return TASK, Result(value={"review": said}, drop=TASK)


def decide(
    table: Table, rows: Sequence[Row], *, keep: bool, note: str = "", clock: Callable[[], float] = time.time
) -> list[Row]:
    """Store a decision about rows, and return them as they are now."""
    changes: dict[str, dict[str, Result]] = {}
    fresh: list[Row] = []
    for row in rows:
        change = decided(row, keep=keep, note=note, at=clock())
        if change is not None:
            task, result = change
            changes.setdefault(task, {})[row.id] = result
            row = replace(row, results={**row.results, task: result})
        fresh.append(row)
    for task, results in changes.items():
        table.put(task, results)
    return fresh
