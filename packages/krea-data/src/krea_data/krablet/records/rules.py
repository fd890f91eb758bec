"""Records: keyed values that many writers change at once, with a rule for each column how two writes become one.

set     the later one
once    the first one stays
add     their sum
max     the greater one
min     the lesser one
merge   the keys of both objects, the later one's where both have one
union   all strings of both lists

A value of None leaves its column as it is. All rules are associative, and so is the joining of whole writes below: a
client, a funnel and the database may each join what they have and the row ends as if the writes had come one by one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypeAlias

from krea_data.checks import check_name, json_text

__all__ = ["DELETE", "REPLACE", "UPDATE", "Column", "Record", "Write", "check_id", "check_ids", "joined"]

UPDATE, DELETE, REPLACE = 0, 1, 2  # change the row; empty it; empty it, then change it
_ID_BYTES = 1024  # as in images
_INT = 1 << 63

# [UPDATE, DELETE or REPLACE, then a value or None for every column]
Write: TypeAlias = list[Any]


def _set(_: Any, new: Any) -> Any:
    return new


def _once(old: Any, _: Any) -> Any:
    return old


def _add(old: Any, new: Any) -> Any:
    return old + new


def _merge(old: Any, new: Any) -> Any:
    return {**old, **new}


def _union(old: Any, new: Any) -> Any:
    return sorted({*old, *new})


_JOINS: dict[str, Callable[[Any, Any], Any]] = {
    "set": _set,
    "once": _once,
    "add": _add,
    "max": max,
    "min": min,
    "merge": _merge,
    "union": _union,
}
_ORDERED = frozenset({"set", "once", "max", "min"})
_RULES = {
    "int": _ORDERED | {"add"},
    "float": _ORDERED | {"add"},
    "text": _ORDERED,
    "bool": _ORDERED,
    "time": _ORDERED,
    "json": frozenset({"set", "once", "merge"}),
    "texts": frozenset({"set", "once", "union"}),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: int, float, text, bool, time, json or texts (a set of strings), and its rule."""

    name: str
    type: str
    rule: str = "set"

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.name in {"slot", "id", "state", "ver", "changed_at"}:
            raise ValueError(f"a column cannot be called {self.name!r}; the table has one of its own")
        if self.type not in _RULES:
            raise ValueError(f"column {self.name}: {self.type!r} is no type; use one of {sorted(_RULES)}")
        if self.rule not in _RULES[self.type]:
            raise ValueError(
                f"column {self.name}: {self.rule!r} does not suit {self.type}; use one of {sorted(_RULES[self.type])}"
            )

    def checked(self, value: Any, row_id: str) -> Any:
        """The value as it is joined and stored, or ValueError."""
        if value is None:
            return None
        try:
            return _CHECKS[self.type](value, self.rule)
        except (ValueError, TypeError, AttributeError) as error:
            raise refused(self.name, row_id, value, error) from error

    def checked_all(self, values: Sequence[Any], ids: Sequence[str]) -> Sequence[Any]:
        """`checked` for many rows at once."""
        plain = _PLAIN.get(self.type)
        return values if plain is not None and plain(values) else list(map(self.checked, values, ids))


@dataclass(frozen=True)
class Record:
    """A table of records by name, with its columns in order."""

    name: str
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        names = [column.name for column in self.columns]
        if not names or len(set(names)) < len(names) or len(names) > 100:
            raise ValueError(f"record {self.name} has columns {names}; give 1 to 100 different ones")

    @cached_property
    def joins(self) -> tuple[Callable[[Any, Any], Any], ...]:
        """How two values become one, by column."""
        return tuple(_JOINS[column.rule] for column in self.columns)

    def write(self, row_id: str, values: Mapping[str, Any] | None) -> Write:
        """What changes a row by these values, or deletes it for None; ValueError names what cannot be stored."""
        if type(row_id) is not str or not row_id.isascii() or not 0 < len(row_id) <= _ID_BYTES or "\0" in row_id:
            check_id(row_id)
        write: Write = self._nothing.copy()
        if values is None:
            write[0] = DELETE
            return write
        checks = self._checks
        name = ""
        try:
            for name, value in values.items():
                place, check, rule = checks[name]
                if value is not None:
                    write[place] = check(value, rule)
        except KeyError:
            known = list(checks)
            raise ValueError(f"{row_id[:80]!r} has a value {name!r}; record {self.name} has {known}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise refused(name, row_id, values[name], error) from error
        return write

    @cached_property
    def _nothing(self) -> Write:
        return [UPDATE, *[None] * len(self.columns)]

    @cached_property
    def _checks(self) -> Mapping[str, tuple[int, Callable[[Any, str], Any], str]]:
        """By column: where its value lies in a write, and how it is checked."""
        return {c.name: (place, _CHECKS[c.type], c.rule) for place, c in enumerate(self.columns, 1)}


def refused(name: str, row_id: str, value: Any, error: Exception) -> ValueError:
    """What is raised for a value that cannot be stored."""
    return ValueError(f"{name} of {row_id[:80]!r} is {value!r:.80}: {error}")


def joined(joins: Sequence[Callable[[Any, Any], Any]], old: Write, new: Write) -> Write:
    """The one write that does what `old` and then `new` do; `old` may become it."""
    if new[0] != UPDATE:
        return new
    if old[0] == DELETE:
        old[0] = REPLACE
    for place, join in enumerate(joins, 1):
        now = new[place]
        if now is not None:
            was = old[place]
            old[place] = now if was is None else join(was, now)
    return old


def check_id(row_id: object) -> None:
    """ValueError unless this can be a row's id."""
    if (
        not isinstance(row_id, str)
        or not row_id
        or "\0" in row_id
        or len(row_id.encode("utf-8", "replace")) > _ID_BYTES
    ):
        raise ValueError(f"{row_id!r:.80} is no id; use 1 to {_ID_BYTES} bytes of text without NUL")
    if not row_id.isascii():
        row_id.encode()


def check_ids(ids: Sequence[Any]) -> None:
    """ValueError unless all of these can be ids."""
    if not (set(map(type, ids)) <= {str} and _is_text(ids) and all(ids) and max(map(len, ids), default=0) <= _ID_BYTES):
        for row_id in ids:
            check_id(row_id)


def _is_text(values: Sequence[Any]) -> bool:
    """Whether strings are surely such as PostgreSQL can store."""
    whole = "".join(values)
    return whole.isascii() and "\0" not in whole


def _int(value: Any, _: str) -> int:
    if type(value) is not int or not -_INT <= value < _INT:
        raise ValueError("use a whole number of 64 bits")
    return value


def _float(value: Any, _: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("use a finite number")
    return float(value)


def _text(value: Any, _: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("use text without NUL characters, which PostgreSQL cannot store")
    if not value.isascii():
        value.encode()
    return value


def _bool(value: Any, _: str) -> bool:
    if type(value) is not bool:
        raise ValueError("use true or false")
    return value


def _time(value: Any, _: str) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("use a datetime with its time zone")
    return value


def _json(value: Any, rule: str) -> Any:
    if rule == "merge" and not isinstance(value, dict):
        raise ValueError("use an object, since its keys are merged")
    json_text({"value": value}, "it")
    return value


def _texts(value: Any, rule: str) -> list[str]:
    if isinstance(value, str):
        raise ValueError("use a list of strings")
    return sorted({_text(item, rule) for item in value})


# Whether all values are surely good as they are, found out in a few passes; if not, each is looked at.
_PLAIN: dict[str, Callable[[Sequence[Any]], bool]] = {
    "int": lambda values: set(map(type, values)) == {int} and min(values) >= -_INT and max(values) < _INT,
    "text": lambda values: set(map(type, values)) == {str} and _is_text(values),
    "bool": lambda values: set(map(type, values)) <= {bool, type(None)},
}
_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "int": _int,
    "float": _float,
    "text": _text,
    "bool": _bool,
    "time": _time,
    "json": _json,
    "texts": _texts,
}
