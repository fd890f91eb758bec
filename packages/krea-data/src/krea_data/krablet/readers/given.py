"""What clients hand to a service, as the table takes it, or ValueError saying what is wrong with it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from krea_data.columns import TYPES
from krea_data.rows import Claim, Result, Row

__all__ = ["NamedTask", "few", "held", "loaded", "result_of", "task_of"]

_ROWS = 10_000  # in one add, put or complete


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedTask:
    """A task as far as a table needs to know it; the work is done elsewhere."""

    name: str
    after: tuple[str, ...] = ()
    columns: Mapping[str, type] = field(default_factory=dict)
    indexed: tuple[str, ...] = ()
    reads: tuple[str, ...] | None = None

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        """Not here."""
        raise NotImplementedError(f"task {self.name} is worked on by clients")


def task_of(raw: Mapping[str, Any]) -> NamedTask:
    """The task that a client speaks of, or ValueError."""
    try:
        reads = raw.get("reads")
        return NamedTask(
            name=str(raw["name"]),
            after=tuple(map(str, raw.get("after", ()))),
            columns={str(name): TYPES[kind] for name, kind in raw.get("columns", {}).items()},
            indexed=tuple(map(str, raw.get("indexed", ()))),
            reads=None if reads is None else tuple(map(str, reads)),
        )
    except (AttributeError, TypeError, LookupError) as error:
        raise ValueError(f"{raw!r:.80} is no task; say name, after, columns, indexed, reads ({error!r})") from error


def few(items: Any, what: str) -> list[Any]:
    """The list, if it is one and not too long."""
    if not isinstance(items, list) or len(items) > _ROWS:
        raise ValueError(f"{what} are no list of at most {_ROWS}; send them in parts")
    return items


def held(row_id: str, token: int) -> Claim:
    """A claim as far as a table needs to know it."""
    return Claim(row=Row(id=row_id, blob=""), token=token, id=row_id)


def result_of(value: str, drop: str | None) -> Result:
    """The result of a JSON text and a reason for dropping."""
    return Result(value=loaded(value), drop=drop)


def loaded(text: str) -> dict[str, Any]:
    """The object of a JSON text, or ValueError."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r:.80} is no JSON text: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{text!r:.80} is no JSON object")
    return value
