"""The statements of the readers: by key, a page in order of id, a count.

Each gives one line or more, and says first which version of the DAG the shard has: a reader that knew another one
reads again. JSON comes out as text, for the client to read, and times as microseconds since 1970.

Columns are fields of the filter language and these: `meta` and `<task>.value` whole, and `<task>` for the three
columns `<task>.value`, `<task>.dropped` and `<task>.done_at`. The id always comes first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, LiteralString

from psycopg import sql

from krea_data.checks import check_name
from krea_data.krablet.dag import kept, result
from krea_data.krablet.readers.filter_sql import compiled
from krea_data.krablet.readers.filters import Field, Filter, parse_field

__all__ = [
    "KNOWN",
    "Column",
    "Known",
    "Page",
    "all_columns",
    "count_statement",
    "keys_statement",
    "page_statement",
    "parse_columns",
]

KNOWN: LiteralString = """
select s.dag, s.number, s.bits, coalesce((select array_agg(name order by number) from task), '{}'),
  (select array_agg(shard order by slot) from slot_map), (select array_agg(epoch order by slot) from slot_map),
  coalesce((select array_agg(array[number::text, dsn] order by number) from member), '{}')
from shard s"""
_COLUMNS = 200


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an answer: its name, and what is in it; a JSON field without key is the whole of it."""

    name: str
    field: Field

    @property
    def type(self) -> Literal["text", "json", "time", "bool"]:
        """What its values are."""
        return self.field.type


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What a shard said when it was last asked: the version of its DAG, and the tasks with a table of results."""

    version: int
    tasks: tuple[str, ...]
    # Rendered statements and their values, by columns.
    statements: dict[tuple[Column, ...], tuple[bytes, dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Which rows a page takes: those after an id, in order, that these tasks kept and the filter takes."""

    wanted: Filter
    kept_by: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()


def all_columns(tasks: Sequence[str]) -> tuple[Column, ...]:
    """The whole of a row: id, blob, meta, and of every task value, reason for dropping and time."""
    return (*_ROW, *(column for task in tasks for column in _result(task)))


def parse_columns(raw: object, tasks: Sequence[str]) -> tuple[Column, ...]:
    """The columns of these names, or ValueError naming the one that is wrong; None gives `all_columns`."""
    if raw is None:
        return all_columns(tasks)
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes) or len(raw) > _COLUMNS:
        raise ValueError(f"columns are {raw!r:.80}, not a list of at most {_COLUMNS} names")
    found = {"id": _ROW[0]}
    for number, name in enumerate(raw):
        for column in _columns(name, f"columns[{number}]"):
            found[column.name] = column
    return tuple(found.values())


def keys_statement(known: Known, columns: Sequence[Column], values: dict[str, Any]) -> sql.Composed:
    """The rows of the ids in the parameter `ids`, each found in the index of ids."""
    selected, joins = _selected(known, columns, values)
    return sql.SQL(
        "select (select dag from shard), i.slot{} from (select) as one"
        " left join images i on i.id = any(%(ids)s::text[]){}"
    ).format(selected, joins)


def page_statement(known: Known, page: Page, limit: int, values: dict[str, Any]) -> sql.Composed:
    """Up to `limit` rows after the id `after` in order of id, along their index, in the slots `mine` if in doubt."""
    selected, joins = _selected(known, page.columns, values)
    return sql.SQL(
        "with picked as materialized (select i.* from images i where i.id > %(after)s and {} order by i.id limit {})"
        " select (select dag from shard), i.slot{} from (select) as one left join picked i on true{} order by i.id"
    ).format(_condition(known, page, values), sql.Literal(limit), selected, joins)


def count_statement(known: Known, page: Page, cap: int, values: dict[str, Any]) -> sql.Composed:
    """How many rows there are, up to `cap`, in the slots `mine` if in doubt."""
    return sql.SQL(
        "select (select dag from shard), (select count(*) from (select from images i where {} limit {}) as found)"
    ).format(_condition(known, page, values), sql.Literal(cap))


_ROW = (Column("id", Field("id")), Column("blob", Field("blob")), Column("meta", Field("meta")))


def _result(task: str) -> list[Column]:
    return [
        Column(f"{task}.value", Field("value", task)),
        Column(f"{task}.dropped", Field("dropped", task)),
        Column(f"{task}.done_at", Field("done_at", task)),
    ]


def _columns(name: object, at: str) -> list[Column]:
    """What one name in a list of columns stands for."""
    if isinstance(name, str):
        task, _, part = name.partition(".")
        if name == "meta":
            return [_ROW[2]]
        if name not in ("id", "blob", "added_at") and task != "meta" and part in ("", "value"):
            try:
                whole = _result(check_name(task))
            except ValueError as error:
                raise ValueError(f"{at}: {error}") from error
            return whole[:1] if part else whole
    return [Column(str(name), parse_field(name, at))]


def _condition(known: Known, page: Page, values: dict[str, Any]) -> sql.Composable:
    """What the page takes of the rows that count: of a slot that is moved there is a copy on another shard too."""
    if any(task not in known.tasks for task in page.kept_by):
        return sql.SQL("false")
    return sql.SQL("({}){} and i.slot not in (select slot from away where slot <> all(%(mine)s::int[]))").format(
        compiled(page.wanted, known.tasks, values), kept(page.kept_by, "i")
    )


def _selected(known: Known, columns: Sequence[Column], values: dict[str, Any]) -> tuple[sql.Composed, sql.Composed]:
    """The columns with a comma before each, and the joins that they need."""
    aliases: dict[str, sql.Identifier] = {}
    cells = [_cell(column, known, aliases, values) for column in columns]
    joins = [
        sql.SQL(" left join {0} as {1} on {1}.slot = i.slot and {1}.id = i.id").format(result(task), alias)
        for task, alias in aliases.items()
    ]
    return sql.Composed([sql.SQL(", {}").format(cell) for cell in cells]), sql.Composed(joins)


_PLACES: Mapping[str, LiteralString] = {
    "id": "i.id",
    "blob": "i.blob",
    "meta": "i.meta::text",
    "added_at": "(extract(epoch from i.added_at) * 1000000)::int8",
    "dropped": "{row}.dropped",
    "value": "{row}.value::text",
    "kept": "case when {row}.id is not null then {row}.dropped is null end",
    "done_at": "(extract(epoch from {row}.done_at) * 1000000)::int8",
}


def _cell(column: Column, known: Known, aliases: dict[str, sql.Identifier], values: dict[str, Any]) -> sql.Composable:
    """The expression for a column, as text where it is JSON; null if the shard does not know its task."""
    kind, task, key = column.field.kind, column.field.task, column.field.key
    if task and task not in known.tasks:
        return sql.SQL("null")
    row = aliases.setdefault(task, sql.Identifier(f"r{len(aliases)}")) if task else sql.SQL("i")
    if key:
        name = f"f{len(values)}"
        values[name] = key
        whole = sql.SQL("i.meta") if kind == "meta" else sql.SQL("{}.value").format(row)
        return sql.SQL("({} -> {}::text)::text").format(whole, sql.Placeholder(name))
    return sql.SQL(_PLACES[kind]).format(row=row)
