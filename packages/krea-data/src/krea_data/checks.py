"""What may enter a table: one set of rules for every implementation, checked at the door."""

import json
import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from krea_data.rows import Result, Row

__all__ = [
    "check_lease",
    "check_limit",
    "check_name",
    "check_priority",
    "check_row",
    "dag_order",
    "json_text",
    "result_text",
]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_PRIORITIES = 9
_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
_ID_BYTES = 1024  # an index entry of PostgreSQL holds about 2,700


def check_name(task: str) -> str:
    """The task's name, or ValueError: it becomes part of a table's name."""
    if not _NAME.fullmatch(task):
        raise ValueError(
            f"{task!r} is no name for a task: use 1 to 40 lower-case letters, digits and underscores, first a letter"
        )
    return task


def check_limit(limit: int, lease_s: float) -> None:
    """ValueError unless a claim asks for at least one row and for a lease that lasts."""
    if limit < 1:
        raise ValueError(f"limit {limit} is below 1; ask for at least one row")
    check_lease(lease_s)


def check_lease(lease_s: float) -> None:
    """ValueError unless a lease lasts."""
    if not 0 < lease_s < 1e7:
        raise ValueError(f"lease_s {lease_s} is not between 0 and 10,000,000 seconds; use about twice a batch's time")


def check_priority(priority: int) -> None:
    """ValueError unless this is a priority: each one in use costs every claim a look, so there are only a few."""
    if type(priority) is not int or not -_PRIORITIES <= priority <= _PRIORITIES:
        raise ValueError(f"priority {priority!r} is no whole number from -{_PRIORITIES} to {_PRIORITIES}; 0 is usual")


def json_text(value: Mapping[str, Any], what: str) -> str:
    """The value as JSON text that PostgreSQL takes too, or ValueError saying what is wrong with `what`."""
    if not value:
        return "{}"
    try:
        text = _JSON.encode(dict(value))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} cannot be stored as JSON ({error}); use numbers, strings, lists and dicts") from error
    if "\\u0000" in text and "\0" in _strings(value):
        raise ValueError(f"{what} contains a NUL character, which PostgreSQL cannot store; remove it")
    return text


def dag_order(after: Mapping[str, Iterable[str]]) -> list[str]:
    """Task names, predecessors first, or ValueError for a circle."""
    try:
        return list(TopologicalSorter({name: sorted(before) for name, before in after.items()}).static_order())
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ValueError(f"tasks wait for each other in a circle ({circle}); take one `after` away") from error


def result_text(result: Result, task: str, row_id: str) -> str:
    """The JSON text of a result's value, or ValueError naming the task and the row."""
    if not isinstance(result, Result):
        raise ValueError(f"task {task} answered {row_id} with {type(result).__name__}; return a krea_data Result")
    if result.drop is not None and not (result.drop and _storable(result.drop)):
        raise ValueError(f"task {task} dropped {row_id} for the reason {result.drop!r}; give a short non-empty one")
    return json_text(result.value, f"the result of {task} for {row_id}")


def check_row(row: Row) -> str:
    """The JSON text of a row's meta, or ValueError naming the row and the rule."""
    if not row.id or not _storable(row.id) or len(row.id.encode()) > _ID_BYTES:
        raise ValueError(
            f"row id {row.id[:80]!r} is empty, too long or no text; use 1 to {_ID_BYTES} bytes without NUL"
        )
    if not _storable(row.blob):
        raise ValueError(f"the blob key {row.blob[:80]!r} of row {row.id} is no text; use the sha256 in hex")
    return json_text(row.meta, f"the meta of row {row.id}")


def _storable(text: str) -> bool:
    """Whether PostgreSQL can store it: no NUL, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _strings(value: object) -> str:
    """All keys and strings in a JSON value, run together."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "".join(_strings(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return "".join(map(_strings, value))
    return ""
