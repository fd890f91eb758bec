"""Give a shard the tables that another one has: the same columns, keys and indexes, without rows.

Tables come with tasks and records, at any time and from any process, so what is moved is looked up in the catalogue and
never listed. Tasks are declared, which also queues the rows that the shard has already.
"""

from dataclasses import dataclass
from typing import Any

from psycopg import Connection, sql

from krea_data.krablet.dag import Dag, declare, load
from krea_data.krablet.typed import set_columns

__all__ = ["Shape", "clone_controls", "clone_tables", "moving_tables"]

# What belongs to the shard and not to its rows.
_OWN = frozenset({"away", "change", "member", "migration", "outgoing", "shard", "slot_map"})
_RECORD = """
insert into record (name, columns) values (%s, %s::jsonb) on conflict (name) do update set columns = excluded.columns
where jsonb_array_length(record.columns) < jsonb_array_length(excluded.columns)"""  # columns are only added
_CONTROL = """
with mine as (
  update task set paused = paused or %(paused)s,
    bands = array(select distinct unnest(bands || %(bands)s::smallint[]))
  where name = %(name)s and (paused < %(paused)s or not bands @> %(bands)s::smallint[])
  returning name
) update shard set dag = dag + 1 where exists (select from mine)"""
_TABLES = """
select c.relname, coalesce(c.reloptions, '{}'),
  (select jsonb_agg(jsonb_build_array(a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
       a.attgenerated, pg_get_expr(d.adbin, d.adrelid), nullif(l.collname, 'default')) order by a.attnum)
   from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     left join pg_collation l on l.oid = a.attcollation
   where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
  coalesce((select jsonb_agg(jsonb_build_array(conname, pg_get_constraintdef(oid)) order by contype desc, conname)
    from pg_constraint where conrelid = c.oid and contype in ('p', 'u', 'c')), '[]'),
  coalesce((select jsonb_agg(jsonb_build_array(i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid, 0, true))
      order by 1)
    from pg_index i where i.indrelid = c.oid
      and not exists (select from pg_constraint where conindid = i.indexrelid)), '[]'),
  coalesce((select array_agg(a.attname::text order by k.place) from pg_index i,
      unnest(i.indkey::int[]) with ordinality as k (number, place)
      join pg_attribute a on a.attnum = k.number where i.indrelid = c.oid and i.indisprimary
      and a.attrelid = c.oid), '{}')
from pg_class c where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r' order by c.relname"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A table as the catalogue describes it."""

    name: str
    options: tuple[str, ...]
    columns: tuple[tuple[Any, ...], ...]  # name, type, not null, identity, generated, default, collation
    constraints: tuple[tuple[str, str], ...]
    indexes: tuple[tuple[str, str], ...]
    key: tuple[str, ...]

    @property
    def written(self) -> tuple[str, ...]:
        """The columns that a copy has to fill; the others fill themselves."""
        return tuple(name for name, _, _, identity, generated, *_ in self.columns if not identity and not generated)

    @property
    def paged(self) -> bool:
        """Whether its rows can be read in order of id, slot by slot."""
        return self.key == ("slot", "id")

    @property
    def by_id(self) -> bool:
        """Whether its rows belong to ids."""
        return "id" in self.written


def shapes(connection: Connection) -> dict[str, Shape]:
    """All tables of the shard by name."""
    return {
        name: Shape(
            name=name,
            options=tuple(options),
            columns=tuple(map(tuple, columns)),
            constraints=tuple(map(tuple, constraints)),
            indexes=tuple(map(tuple, indexes)),
            key=tuple(key),
        )
        for name, options, columns, constraints, indexes, key in connection.execute(_TABLES).fetchall()
    }


def moving_tables(connection: Connection) -> list[Shape]:
    """The tables whose rows belong to slots, in the order in which to lock them all.

    Those first that writers lock first: they store results before they queue rows for the tasks that come next, and the
    dead are taken out of the way before both. Then nobody who holds one of these locks waits for one that we hold.
    """
    found = [
        shape
        for name, shape in shapes(connection).items()
        if name not in _OWN and any(column[0] == "slot" for column in shape.columns)
    ]
    order = {f"queue_{task}": place for place, task in enumerate(load(connection).after)}
    kinds = {"dead": -2, "images": -1}
    return sorted(found, key=lambda shape: (kinds.get(shape.name, order.get(shape.name, len(order))), shape.name))


def clone_tables(source: Connection, target: Connection) -> None:
    """Let `target` have all tasks and all tables of `source`; what it has already stays."""
    records = source.execute("select name, columns::text from record").fetchall()
    theirs = load(source)  # both before the tables, which then have all columns that these know of
    mine = load(target)
    tasks = {
        name: theirs.after[name]
        for name in theirs.after
        if name in theirs.queued and (name not in mine.queued or mine.after[name] != theirs.after[name])
    }
    results = [name for name in theirs.after if name not in mine.after]
    if tasks or results:
        declare(target, tasks, results)
    _type_columns(target, theirs)
    known = shapes(target)
    for name, shape in shapes(source).items():
        with target.transaction():
            if name in known:
                _widen(target, shape, known[name])
            elif name not in _OWN:
                _create(target, shape)
    for record in records:
        target.execute(_RECORD, record)


def clone_controls(source: Connection, target: Connection) -> None:
    """Let the target's tasks be paused as the source's are, and know the priorities of the rows that came.

    To be called at the very end: a band without rows may be forgotten, and what is paused may be resumed.
    """
    found = source.execute("select name, paused, bands from task where paused or bands <> '{}'").fetchall()
    with target.transaction():
        target.execute("select from shard for update")
        for name, paused, bands in found:
            target.execute(_CONTROL, {"name": name, "paused": paused, "bands": bands})


def _create(target: Connection, shape: Shape) -> None:
    parts = [_column(column) for column in shape.columns]
    parts += [sql.SQL("constraint {} {}").format(sql.Identifier(name), _raw(text)) for name, text in shape.constraints]
    statement = sql.SQL("create table if not exists {} ({})").format(
        sql.Identifier(shape.name), sql.SQL(", ").join(parts)
    )
    if shape.options:
        statement += _raw(f" with ({', '.join(shape.options)})")
    target.execute(statement)
    for _, text in shape.indexes:
        target.execute(_raw(text))


def _widen(target: Connection, shape: Shape, known: Shape) -> None:
    """Add the columns and indexes that came since."""
    have = {column[0] for column in known.columns}
    for column in shape.columns:
        if column[0] not in have:
            target.execute(
                sql.SQL("alter table {} add column if not exists {}").format(
                    sql.Identifier(shape.name), _column(column)
                )
            )
    indexes = {name for name, _ in known.indexes}
    for name, text in shape.indexes:
        if name not in indexes:
            target.execute(_raw(text))


def _column(column: tuple[Any, ...]) -> sql.Composed:
    name, kind, not_null, identity, generated, default, collation = column
    text = kind
    if collation is not None:
        text += f' collate "{collation}"'
    if identity:
        text += " generated always as identity"
    elif generated:
        text += f" generated always as ({default}) stored"
    elif default is not None:
        text += f" default {default}"
    return sql.Identifier(name) + _raw(f" {text}{' not null' if not_null else ''}")


def _type_columns(target: Connection, theirs: Dag) -> None:
    """Give the target's results the typed columns and indexes that they lack; those it has keep their types."""
    with target.transaction():
        target.execute("select from shard for update")
        mine, changed = load(target), False
        for task in theirs.after:
            known = mine.columns.get(task, {})
            columns = {name: kind for name, kind in theirs.columns.get(task, {}).items() if name not in known}
            indexed = theirs.indexed.get(task, frozenset()) - mine.indexed.get(task, frozenset())
            if columns or indexed:
                set_columns(target, task, columns, sorted(indexed))
                changed = True
        if changed:
            target.execute("update shard set dag = dag + 1")


def _raw(text: str) -> sql.Composed:
    """SQL as the catalogue of the other shard wrote it."""
    return sql.Composed([sql.SQL(text)])  # pyright: ignore[reportArgumentType]
