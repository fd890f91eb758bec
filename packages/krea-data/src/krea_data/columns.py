"""Typed columns of a task's results: what a task may promise of its values, and whether a value keeps the promise.

A task that has an attribute `columns`, such as {"score": float, "words": int}, says that these fields of its value,
where they are there and not None, have these types. The krablet makes columns of them that can be filtered and
indexed; every table refuses a value of another type at the door.
"""

import math
from collections.abc import Mapping
from typing import Any

from krea_data.checks import check_name, result_text
from krea_data.interfaces import Task
from krea_data.rows import Result

__all__ = ["TYPES", "check_columns", "task_columns", "task_indexed", "typed_text"]

TYPES = {"int": int, "float": float, "str": str, "bool": bool}
_WORDS = {"int": "a whole number of 64 bits", "float": "a number below 1e308", "str": "text", "bool": "true or false"}
_FAR = 1e308  # PostgreSQL's double precision ends a little above


def task_columns(task: Task) -> dict[str, str]:
    """The names of the types of the task's columns by their names, or ValueError; empty where it declares none."""
    found: dict[str, str] = {}
    for name, kind in dict(getattr(task, "columns", {})).items():
        if kind not in TYPES.values():
            raise ValueError(f"column {name!r} of task {task.name} has the type {kind!r}; use int, float, str or bool")
        found[check_name(name)] = kind.__name__
    return found


def task_indexed(task: Task) -> tuple[str, ...]:
    """The columns by which kept rows are to be found quickly (`indexed`), or ValueError for one that is not there."""
    columns, indexed = task_columns(task), tuple(getattr(task, "indexed", ()))
    for name in indexed:
        if name not in columns:
            raise ValueError(f"task {task.name} wants an index on {name!r}, which is not among its columns; add it")
    return indexed


def check_columns(value: Mapping[str, Any], columns: Mapping[str, str], what: str) -> None:
    """ValueError unless every field of `what` that has a typed column is of that type, absent or None."""
    for name, kind in columns.items():
        field = value.get(name)
        if field is not None and not _fits(field, kind):
            raise ValueError(
                f"{what} has {name} = {str(field)[:80]!r}, which is not {_WORDS[kind]}; answer with {kind}"
            )


def _fits(field: object, kind: str) -> bool:
    if kind == "float":
        return type(field) in (int, float) and abs(field) < _FAR and math.isfinite(field)  # type: ignore[arg-type]
    if kind == "int":
        return type(field) is int and -(1 << 63) <= field < 1 << 63
    return isinstance(field, TYPES[kind])


def typed_text(result: Result, task: str, row_id: str, columns: Mapping[str, str]) -> str:
    """The JSON text of a result's value, or ValueError naming the task, the row and what is wrong."""
    text = result_text(result, task, row_id)
    if columns:
        check_columns(result.value, columns, f"the result of {task} for {row_id}")
    return text
