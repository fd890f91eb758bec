"""The tables of records in a shard: declare them, and change many rows in one statement."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, LiteralString

from psycopg import Connection, sql

from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.errors import SchemaError
from krea_data.krablet.funnels.pieces import Rows
from krea_data.krablet.records.rules import Column, Record

__all__ = ["declare_record", "load_records", "upsert"]

_TYPES: dict[str, LiteralString] = {
    "int": "bigint",
    "float": "double precision",
    "text": 'text collate "C"',
    "bool": "boolean",
    "time": "timestamptz",
    "json": "jsonb",
    "texts": "text[]",
}
# What a column becomes; t is the row as it is, excluded what is written.
_RULES: dict[str, LiteralString] = {
    "set": "coalesce(excluded.{c}, t.{c})",
    "once": "coalesce(t.{c}, excluded.{c})",
    "add": "coalesce(t.{c} + excluded.{c}, excluded.{c}, t.{c})",
    "max": "greatest(t.{c}, excluded.{c})",
    "min": "least(t.{c}, excluded.{c})",
    "merge": "coalesce(t.{c} || excluded.{c}, excluded.{c}, t.{c})",
    "union": "case when excluded.{c} is null then t.{c}"
    ' else array(select distinct e collate "C" from unnest(t.{c} || excluded.{c}) as u (e) order by 1) end',
}
_BOOL_RULES: dict[str, LiteralString] = {  # booleans have no greatest and least of their own, but the same order
    "max": "coalesce(t.{c} or excluded.{c}, t.{c}, excluded.{c})",
    "min": "coalesce(t.{c} and excluded.{c}, t.{c}, excluded.{c})",
}
_TABLE = """
create table if not exists {table} (
  slot int not null, id text collate "C" not null, state smallint not null default 0,  -- 1: deleted
  ver bigint not null default 1, changed_at timestamptz not null default now(), {columns}, primary key (slot, id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05)"""
_UPSERT = """
insert into {table} as t (slot, id{names})
select slot, id{casts} from unnest(%(slots)s, %(ids)s{given}) as g (slot, id{names})
order by slot, id collate "C"
on conflict (slot, id) do update set ver = t.ver + 1, changed_at = now(), state = excluded.state %% 2{sets}"""


def declare_record(connection: Connection, record: Record) -> None:
    """Give the shard the record's table; further columns may be added, others not changed (SchemaError)."""
    with connection.transaction():
        connection.execute("select from shard for update")
        known = load_records(connection).get(record.name)
        if known == record:
            return
        if known is not None and known.columns != record.columns[: len(known.columns)]:
            raise SchemaError(
                f"record {record.name} has the columns {_listed(known)}, in this order; columns can only be added"
            )
        table = sql.Identifier(f"record_{record.name}")
        defined = [_named("{} ", c.name) + sql.SQL(_TYPES[c.type]) for c in record.columns]
        connection.execute(sql.SQL(_TABLE).format(table=table, columns=sql.SQL(", ").join(defined)))
        for column in defined:
            connection.execute(sql.SQL("alter table {} add column if not exists {}").format(table, column))
        connection.execute(
            "insert into record (name, columns) values (%s, %s)"
            " on conflict (name) do update set columns = excluded.columns",
            (record.name, json.dumps(_listed(record))),
        )


def load_records(connection: Connection) -> dict[str, Record]:
    """The shard's records by name."""
    rows = connection.execute("select name, columns from record").fetchall()
    return {name: Record(name, tuple(Column(*column) for column in columns)) for name, columns in rows}


def upsert(record: Record, rows: Rows) -> tuple[bytes, dict[str, Any]]:
    """The statement that does these writes in order of (slot, id), and its values."""
    reset = rows.ops is not None
    used = tuple(n for n, column in enumerate(rows.columns) if reset or _any(column))
    values: dict[str, Any] = {"slots": Ints(rows.slots), "ids": Texts(rows.ids)}
    if rows.ops is not None:
        values["states"] = Ints(rows.ops)
    for n in used:
        values[f"c{n}"] = _array_of(record.columns[n].type, rows.columns[n] or [None] * len(rows.ids))
    return _statement(record, used, reset), values


def _any(column: Sequence[Any] | None) -> bool:
    return column is not None and any(value is not None for value in column)


def _array_of(kind: str, column: Sequence[Any]) -> Ints | Texts:
    """The values as an array that PostgreSQL turns into one of the column's type."""
    if kind == "int" and None not in column:
        return Ints(column)
    if kind == "text":
        return Texts(column)
    text = _TEXTS[kind]
    return Texts([None if value is None else text(value) for value in column])


@lru_cache(maxsize=1000)
def _statement(record: Record, used: tuple[int, ...], reset: bool) -> bytes:
    state = [sql.Composed([sql.SQL(", state")])] if reset else []
    names, casts, sets = [*state], [*state], []
    given = [sql.SQL(", ") + sql.Placeholder("states")] if reset else []
    for n in used:
        column = record.columns[n]
        name = sql.Identifier(column.name)
        rule = (_BOOL_RULES if column.type == "bool" else {}).get(column.rule, _RULES[column.rule])
        kept = sql.SQL(rule).format(c=name)
        if reset:
            kept = sql.SQL("case when excluded.state > 0 then excluded.{} else {} end").format(name, kept)
        names.append(sql.SQL(", {}").format(name))
        casts.append(_named(", {}::", column.name) + sql.SQL(_TYPES[column.type].split(" collate")[0]))
        given.append(sql.SQL(", ") + sql.Placeholder(f"c{n}"))
        sets.append(sql.SQL(", {} = {}").format(name, kept))
    statement = sql.SQL(_UPSERT).format(
        table=sql.Identifier(f"record_{record.name}"),
        names=sql.Composed(names),
        casts=sql.Composed(casts),
        given=sql.Composed(given),
        sets=sql.Composed(sets),
    )
    return statement.as_bytes(None)


def _named(before: LiteralString, name: str) -> sql.Composed:
    return sql.SQL(before).format(sql.Identifier(name))


def _listed(record: Record) -> list[list[str]]:
    return [[column.name, column.type, column.rule] for column in record.columns]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _array(items: Sequence[str]) -> str:
    quoted = ('"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items)
    return "{" + ",".join(quoted) + "}"


_TEXTS: dict[str, Callable[[Any], str]] = {
    "int": str,
    "float": repr,
    "text": str,
    "bool": lambda value: "t" if value else "f",
    "time": lambda value: value.isoformat(),
    "json": _json,
    "texts": _array,
}
