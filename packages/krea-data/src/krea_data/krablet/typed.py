"""Typed columns of result tables: generated from the value, so that they can be filtered and indexed as what they are.

`v_<name>` holds value -> '<name>' as bigint, double precision, text or boolean. The expression gives null, never an
error, for a value of another type: what older code stored must not keep a table from getting a column. A column of a
changed type is made anew from the values, and nothing is lost by it; a column is not dropped when a task no longer
declares it, since readers may use it, and workers of an older version may still declare it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import LiteralString

from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from krea_data.krablet.names import result

__all__ = ["column", "lacking", "set_columns"]

# Each guard is a case of its own: the order of evaluation inside of an `and` is not promised.
_EXPRESSIONS: dict[str, tuple[LiteralString, LiteralString]] = {
    "int": (
        "bigint",
        "case when jsonb_typeof(value -> {key}) = 'number' then case when (value -> {key})::numeric between"
        " -9223372036854775808 and 9223372036854775807 then case when scale(trim_scale((value -> {key})::numeric)) = 0"
        " then (value -> {key})::bigint end end end",
    ),
    "float": (
        "double precision",
        "case when jsonb_typeof(value -> {key}) = 'number' then case when abs((value -> {key})::numeric) < 1e308"
        " then (value -> {key})::double precision end end",
    ),
    "str": ('text collate "C"', "case when jsonb_typeof(value -> {key}) = 'string' then value ->> {key} end"),
    "bool": ("boolean", "case when jsonb_typeof(value -> {key}) = 'boolean' then (value -> {key})::boolean end"),
}


def column(name: str) -> sql.Identifier:
    """The typed column of a field of the value."""
    return sql.Identifier(f"v_{name}")


def lacking(known: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The wanted columns that are not there with this type."""
    return {name: kind for name, kind in wanted.items() if known.get(name) != kind}


def set_columns(connection: Connection, task: str, wanted: Mapping[str, str], indexed: Sequence[str] = ()) -> None:
    """Bring the task's result table to these columns; again does nothing. Reads and writes the whole table."""
    row = connection.execute("select columns, indexed from task where name = %s for update", (task,)).fetchone()
    known: dict[str, str] = row[0] if row is not None else {}
    ready: list[str] = row[1] if row is not None else []
    new = lacking(known, wanted)
    steps = [sql.SQL("drop column if exists {}").format(column(name)) for name in new]  # also one that nobody knows of
    steps += [_added(name, kind) for name, kind in new.items()]
    if steps:
        connection.execute(sql.SQL("alter table {} ").format(result(task)) + sql.SQL(", ").join(steps))
    for name in indexed:
        connection.execute(
            sql.SQL("create index if not exists {} on {} ({}) where dropped is null").format(
                sql.Identifier(_index_name(task, name)), result(task), column(name)
            )
        )
    connection.execute(
        "update task set columns = %s, indexed = %s where name = %s",
        (Jsonb({**known, **new}), sorted({*ready, *indexed}), task),
    )


def _added(name: str, kind: str) -> sql.Composed:
    type_name, expression = _EXPRESSIONS[kind]
    return sql.SQL("add column {} {} generated always as ({}) stored").format(
        column(name), sql.SQL(type_name), sql.SQL(expression).format(key=sql.Literal(name))
    )


def _index_name(task: str, name: str) -> str:
    """Within the 63 bytes that PostgreSQL keeps of a name; longer ones would be cut, and could then be the same."""
    plain = f"result_{task}_by_{name}"
    return plain if len(plain) <= 63 else f"{plain[:52]}_{hashlib.sha256(plain.encode()).hexdigest()[:10]}"
