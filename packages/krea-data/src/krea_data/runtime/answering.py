"""A task's answers to rows, checked before they leave the process that made them."""

from collections.abc import Sequence

from krea_data.columns import task_columns, typed_text
from krea_data.interfaces import Task
from krea_data.rows import Result, Row

__all__ = ["answers"]


def answers(task: Task, rows: Sequence[Row]) -> Sequence[Result]:
    """The task's results, or ValueError unless there is one for every row and all can be stored."""
    results = task(rows)
    if len(results) != len(rows):
        raise ValueError(f"task {task.name} gave {len(results)} results for {len(rows)} rows; give one for each row")
    columns = task_columns(task)
    for row, result in zip(rows, results, strict=True):
        typed_text(result, task.name, row.id, columns)
    return results
