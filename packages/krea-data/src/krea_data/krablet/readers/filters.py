"""Which rows a reader wants, in a small typed language that is never SQL.

    {"and": [{"field": "meta.source", "op": "eq", "value": "noto"}, {"not": {"field": "ocr.dropped", "op": "exists"}}]}

Fields are `id`, `blob`, `added_at`, `meta.<name>`, and of every task `<task>.kept`, `<task>.dropped` (the reason),
`<task>.done_at` and `<task>.value.<name>`; what follows the name's first letter is one key, dots and all. A test is
true or false, never unknown: on something that is not there only `exists` with value false is true, so
`not (x eq 1)` takes in the rows without x and `x ne 1` does not. In JSON a number is only compared with numbers, a
text with texts (by code point); `ne` is true between different kinds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from krea_data.checks import check_name

__all__ = ["Both", "Either", "Field", "Filter", "Not", "Scalar", "Test", "parse_field", "parse_filter", "tasks_of"]

Kind = Literal["id", "blob", "added_at", "meta", "kept", "dropped", "value", "done_at"]
Scalar = str | int | float | bool | datetime | None

_DEPTH, _TESTS, _CHOICES, _LETTERS = 12, 200, 1000, 4096
_FIELDS = "id, blob, added_at, meta.<name>, <task>.kept, <task>.dropped, <task>.done_at or <task>.value.<name>"
_ORDERED = ("eq", "ne", "lt", "le", "gt", "ge")
_EQUAL = ("eq", "ne", "in", "exists")
_OPS = {  # by type of field
    "text": (*_ORDERED, "in", "prefix", "exists"),
    "json": (*_ORDERED, "in", "prefix", "exists"),
    "time": (*_ORDERED, "in", "exists"),
    "bool": _EQUAL,
}


@dataclass(frozen=True, slots=True)
class Field:
    """A place in a row: a column, a key of `meta`, or something that a task found out."""

    kind: Kind
    task: str = ""
    key: str = ""

    @property
    def type(self) -> Literal["text", "time", "json", "bool"]:
        """What its values are compared as."""
        if self.kind in ("meta", "value"):
            return "json"
        if self.kind in ("added_at", "done_at"):
            return "time"
        return "bool" if self.kind == "kept" else "text"


@dataclass(frozen=True, slots=True)
class Test:
    """One comparison; `value` is a tuple for `in`, whether it must be there for `exists`."""

    field: Field
    op: str
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Both:
    """All parts hold; true without parts."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One part or more holds; false without parts."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: "Filter"


Filter = Test | Both | Either | Not


def parse_filter(raw: object) -> Filter:
    """The filter that this JSON value says, or ValueError naming the part that is wrong; None takes every row."""
    if raw is None:
        return Both(())
    found = _parsed(raw, "filter", _DEPTH)
    if (tests := _tests(found)) > _TESTS:
        raise ValueError(f"filter has {tests} tests; use at most {_TESTS}, say with `in`")
    return found


def parse_field(name: object, at: str = "field") -> Field:
    """The field of this name, or ValueError."""
    if isinstance(name, str) and _is_text(name):
        head, _, rest = name.partition(".")
        if name in ("id", "blob", "added_at"):
            return Field(name)
        if head == "meta" and rest:
            return Field("meta", key=rest)
        kind, _, key = rest.partition(".")
        if kind in ("kept", "dropped", "done_at") and rest == kind:
            return Field(kind, _task(head, at))
        if kind == "value" and key:
            return Field("value", _task(head, at), key)
    raise ValueError(f"{at} {_short(name)} is not known; use {_FIELDS}")


def tasks_of(wanted: Filter) -> set[str]:
    """The tasks that a filter asks about."""
    if isinstance(wanted, Test):
        return {wanted.field.task} - {""}
    parts = (wanted.part,) if isinstance(wanted, Not) else wanted.parts
    return {task for part in parts for task in tasks_of(part)}


def _parsed(raw: object, at: str, depth: int) -> Filter:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{at} is {_short(raw)}, not an object; use {{field, op, value}}, {{and}}, {{or}} or {{not}}")
    if not depth:
        raise ValueError(f"{at} is more than {_DEPTH} levels deep; flatten the filter")
    keys = {str(key) for key in raw}
    if keys == {"not"}:
        return Not(_parsed(raw["not"], f"{at}.not", depth - 1))
    for word, kind in (("and", Both), ("or", Either)):
        if keys == {word}:
            return kind(
                tuple(_parsed(p, f"{at}.{word}[{n}]", depth - 1) for n, p in _listed(raw[word], f"{at}.{word}"))
            )
    if not {"field", "op"} <= keys or keys - {"field", "op", "value"}:
        raise ValueError(f"{at} has the keys {_short(sorted(keys))}; use field, op and value, or one of and, or, not")
    return _parsed_test(raw, at)


def _parsed_test(raw: Mapping[Any, Any], at: str) -> Test:
    field = parse_field(raw["field"], f"{at}.field")
    op = raw["op"]
    if not isinstance(op, str) or op not in _OPS[field.type]:
        raise ValueError(f"{at}.op {_short(op)} does not go with {raw['field']}; use {', '.join(_OPS[field.type])}")
    if op == "exists":
        there = raw.get("value", True)
        if not isinstance(there, bool):
            raise ValueError(f"{at}.value {_short(there)} does not go with exists; use true or false")
        return Test(field, op, there)
    if "value" not in raw:
        raise ValueError(f"{at}.value is missing; say what {op} compares with")
    if op == "in":
        choices = _listed(raw["value"], f"{at}.value")
        if len(choices) > _CHOICES:
            raise ValueError(f"{at}.value has {len(choices)} choices; use at most {_CHOICES}")
        return Test(field, op, tuple(_value(field, "eq", one, f"{at}.value[{n}]") for n, one in choices))
    return Test(field, op, _value(field, op, raw["value"], f"{at}.value"))


def _value(field: Field, op: str, raw: object, at: str) -> Scalar:
    """A value that the field can be compared with, or ValueError."""
    if field.type == "bool" and isinstance(raw, bool):
        return raw
    if field.type == "time" and isinstance(raw, str):
        return _moment(raw, at)
    if isinstance(raw, str) and field.type in ("text", "json"):
        if not _is_text(raw):
            raise ValueError(f"{at} {_short(raw)} is no text: it is over {_LETTERS} letters or has a NUL or surrogate")
        return raw
    if field.type == "json" and op != "prefix":
        if isinstance(raw, int | float) and not isinstance(raw, bool) and _is_number(raw):
            return raw
        if op in _EQUAL and (raw is None or isinstance(raw, bool)):
            return raw
    fits = {"bool": "true or false", "time": "a time such as 2026-01-31T12:00:00Z", "text": "a text"}
    kinds = "a text or a finite number" if op != "prefix" else "a text"
    raise ValueError(f"{at} {_short(raw)} does not go with {op}; use {fits.get(field.type, kinds)}")


def _moment(raw: str, at: str) -> datetime:
    try:
        moment = datetime.fromisoformat(raw)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"{at} {_short(raw)} is no time with a zone; use one such as 2026-01-31T12:00:00Z")
    return moment


def _listed(raw: object, at: str) -> list[tuple[int, Any]]:
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes):
        raise ValueError(f"{at} is {_short(raw)}, not a list")
    return list(enumerate(raw))


def _task(name: str, at: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from error


def _tests(wanted: Filter) -> int:
    if isinstance(wanted, Test):
        return 1
    return _tests(wanted.part) if isinstance(wanted, Not) else sum(map(_tests, wanted.parts))


def _is_text(text: str) -> bool:
    bad = "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text)
    return not bad and len(text) <= _LETTERS


def _is_number(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _short(raw: object) -> str:
    text = repr(raw)
    return text if len(text) <= 80 else f"{text[:77]}..."
