"""A filter as SQL: names of tables come from names of tasks that were checked, all else goes out as parameters."""

import json
from collections.abc import Collection
from typing import Any, LiteralString

from psycopg import sql

from krea_data.krablet.dag import result
from krea_data.krablet.readers.filters import Both, Field, Filter, Not, Scalar, Test

__all__ = ["compiled"]

_ORDERED: dict[str, LiteralString] = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def compiled(wanted: Filter, tasks: Collection[str], values: dict[str, Any]) -> sql.Composable:
    """The filter as a condition on a row `i` of images, its values added to `values` under names of their own.

    `tasks` are those with a table of results; nothing of any other is there.
    """
    if isinstance(wanted, Test):
        return _test_sql(wanted, tasks, values)
    if isinstance(wanted, Not):
        return sql.SQL("not ({})").format(compiled(wanted.part, tasks, values))
    word, empty = (" and ", "true") if isinstance(wanted, Both) else (" or ", "false")
    if not wanted.parts:
        return sql.SQL(empty)
    parts = [sql.SQL("({})").format(compiled(part, tasks, values)) for part in wanted.parts]
    return sql.SQL(word).join(parts)


def _test_sql(test: Test, tasks: Collection[str], values: dict[str, Any]) -> sql.Composable:
    field = test.field
    if not field.task:
        condition = _compared(test, _place(field, values), values)
        return condition if field.kind != "meta" else sql.SQL("coalesce({}, false)").format(condition)
    absent = test.op == "exists" and test.value is False
    if field.task not in tasks:
        return sql.SQL("true" if absent else "false")
    found = sql.SQL("exists (select from {} r where r.slot = i.slot and r.id = i.id and ({}))")
    if test.op == "exists":
        there = Test(field, "exists", True)
        holds = found.format(result(field.task), _compared(there, _place(field, values), values))
        return sql.SQL("not {}").format(holds) if absent else holds
    return found.format(result(field.task), _compared(test, _place(field, values), values))


def _place(field: Field, values: dict[str, Any]) -> sql.Composable:
    """Where the field's value is."""
    if field.type == "json":
        column = sql.SQL("i.meta" if field.kind == "meta" else "r.value")
        return sql.SQL("({} -> {}::text)").format(column, _bound(field.key, values))
    if field.kind == "kept":
        return sql.SQL("(r.dropped is null)")
    row = sql.SQL("r.{}" if field.task else "i.{}").format(sql.Identifier(field.kind))
    # The key's order is "C" already, and its index is only used without another collation.
    return row if field.type == "time" or field.kind == "id" else sql.SQL('({} collate "C")').format(row)


def _compared(test: Test, place: sql.Composable, values: dict[str, Any]) -> sql.Composable:
    """The comparison; null where there is nothing to compare."""
    if test.op == "exists":
        return sql.SQL("{} is not null" if test.value else "{} is null").format(place)
    if test.field.type == "json":
        return _compared_json(test, place, values)
    if test.op == "in":
        kind: dict[str, LiteralString] = {"text": "text[]", "time": "timestamptz[]", "bool": "bool[]"}
        wanted = sql.SQL(f"{{}}::{kind[test.field.type]}").format(_bound(_listed_value(test), values))
        return sql.SQL("{} = any({})").format(place, wanted)
    if test.op == "prefix":
        return sql.SQL("starts_with({}, {}::text)").format(place, _bound(test.value, values))
    return sql.SQL("{} {} {}").format(place, sql.SQL(_ORDERED[test.op]), _bound(test.value, values))


def _compared_json(test: Test, place: sql.Composable, values: dict[str, Any]) -> sql.Composable:
    if test.op == "in":
        choices = [json.dumps(one) for one in _listed_value(test)]
        return sql.SQL("{} = any({}::text[]::jsonb[])").format(place, _bound(choices, values))
    if test.op in ("eq", "ne"):
        wanted = _bound(json.dumps(test.value), values)
        return sql.SQL("{} {} {}::jsonb").format(place, sql.SQL(_ORDERED[test.op]), wanted)
    if not isinstance(test.value, str):
        ordered = sql.SQL("jsonb_typeof({0}) = 'number' and {0} {1} {2}::jsonb")
        return ordered.format(place, sql.SQL(_ORDERED[test.op]), _bound(json.dumps(test.value), values))
    text = sql.SQL("({} #>> '{{}}') collate \"C\"").format(place)
    if test.op == "prefix":
        holds = sql.SQL("starts_with({}, {}::text)").format(text, _bound(test.value, values))
    else:
        holds = sql.SQL("{} {} {}").format(text, sql.SQL(_ORDERED[test.op]), _bound(test.value, values))
    return sql.SQL("jsonb_typeof({}) = 'string' and {}").format(place, holds)


def _listed_value(test: Test) -> list[Scalar]:
    return list(test.value) if isinstance(test.value, tuple) else [test.value]


def _bound(value: object, values: dict[str, Any]) -> sql.Placeholder:
    """A parameter of its own for this value."""
    name = f"f{len(values)}"
    values[name] = value
    return sql.Placeholder(name)
