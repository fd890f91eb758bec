"""Rows of one slot go from one shard to another: page by page first, then whatever changed meanwhile.

The source's rows decide. What arrives is written in one transaction with how far it goes, and only while the target
still takes this process for the one that moves the slot, so that one which was taken for dead cannot spoil anything.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString
from uuid import UUID

from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from krea_data.krablet.errors import KrabletError
from krea_data.krablet.moves.clone import Shape, moving_tables

__all__ = ["Incoming", "copy_page", "drop_notes", "purge", "replay", "take_notes"]

_CHANGES = 5000  # of one replay
_PURGE_ROWS = 5000  # of one transaction
_NOTES: dict[str, tuple[LiteralString, LiteralString]] = {
    "insert": ("after insert", "new"),
    "update": ("after update", "new"),
    "delete": ("after delete", "old"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """A slot on its way in, and the process that moves it."""

    slot: int
    mover: UUID

    def fence(self, target: Connection) -> None:
        """Keep other movers out until the transaction ends; `KrabletError` if one has taken over."""
        found = target.execute(
            "select from away where slot = %s and incoming and mover = %s for update", (self.slot, self.mover)
        )
        if not found.rowcount:
            raise KrabletError(f"another process moves slot {self.slot} now; leave it to that one")


def take_notes(source: Connection, tables: Iterable[Shape]) -> None:
    """Have every change of rows on their way out noted; tables are locked one after another, each for a moment."""
    known = _noted(source)
    for shape in tables:
        missing = [event for event in _NOTES if (shape.name, f"note_{event}") not in known]
        if not missing:
            continue
        with source.transaction():
            source.execute("set local lock_timeout = '2s'")
            for event in missing:
                source.execute(_note(shape, event))


def drop_notes(source: Connection, tables: Iterable[Shape]) -> None:
    """End the notes, if nothing is on its way out any more."""
    known = _noted(source)
    for shape in tables:
        present = [event for event in _NOTES if (shape.name, f"note_{event}") in known]
        if not present:
            continue
        with source.transaction():
            source.execute("set local lock_timeout = '2s'")
            if source.execute("select from outgoing limit 1").rowcount:
                return
            for event in present:
                source.execute(
                    sql.SQL("drop trigger if exists {} on {}").format(
                        sql.Identifier(f"note_{event}"), sql.Identifier(shape.name)
                    )
                )


def copy_page(source: Connection, target: Connection, shape: Shape, way: Incoming, after: str, rows: int) -> int:
    """Copy the next rows after an id, or all of them where the table has no order of ids; return how many."""
    names = {"table": sql.Identifier(shape.name), "slot": sql.Literal(way.slot)}
    where, last = sql.SQL("slot = {slot}").format(**names), None
    if shape.paged:
        page = (
            "select max(id) from (select id from {table} where slot = {slot} and id > %s order by id limit %s) as page"
        )
        (last,) = source.execute(sql.SQL(page).format(**names), (after, rows)).fetchone() or (None,)
        where += sql.SQL(" and id > {} and id <= {}").format(sql.Literal(after), sql.Literal(last))
    with target.transaction():
        way.fence(target)
        copied = 0 if shape.paged and last is None else _pipe(source, target, shape, where)
        target.execute("update away set copied = copied || %s where slot = %s", (Jsonb({shape.name: last}), way.slot))
    return copied


def replay(
    source: Connection, target: Connection, tables: Mapping[str, Shape], way: Incoming, target_dag: int | None = None
) -> int | None:
    """Write again what was noted, and return how many notes these were; call it until there are none.

    None, and nothing done, where the target's tasks are no longer those of `target_dag`, or, without that, where the
    tables are no longer these; who gives it has locked them.
    """
    notes = source.execute(
        "select n, name, id from change where slot = %s order by n limit %s", (way.slot, _CHANGES)
    ).fetchall()
    changed: dict[str, set[str | None]] = {}
    for _, name, row_id in notes:
        changed.setdefault(name, set()).add(row_id)
    if changed and target_dag is None and {shape.name: shape for shape in moving_tables(source)} != tables:
        return None  # tables were looked up after the notes: a value in a new column is noted after that column came
    with target.transaction():
        way.fence(target)
        if target_dag is not None and target.execute("select dag from shard for share").fetchone() != (target_dag,):
            return None
        for name, ids in changed.items():
            _replace(source, target, tables[name], way.slot, sorted(row_id for row_id in ids if row_id is not None))
    if notes:
        source.execute("delete from change where n = any(%s)", ([n for n, _, _ in notes],))
    return len(notes)


def purge(connection: Connection, tables: Sequence[Shape], slot: int) -> None:
    """Delete all rows of a slot, in short transactions."""
    for shape in tables:
        statement = sql.SQL(
            "delete from {table} where ctid = any (array(select ctid from {table} where slot = %s limit %s))"
        ).format(table=sql.Identifier(shape.name))
        while connection.execute(statement, (slot, _PURGE_ROWS)).rowcount:
            pass


def _replace(source: Connection, target: Connection, shape: Shape, slot: int, ids: Sequence[str]) -> None:
    """Make the target's rows of these ids what the source's are; all rows of the slot where rows have no ids."""
    where = sql.SQL("slot = {}").format(sql.Literal(slot))
    if shape.by_id:
        where += sql.SQL(" and id = any({})").format(sql.Literal(list(ids)))
    target.execute(sql.SQL("delete from {} where ").format(sql.Identifier(shape.name)) + where)
    _pipe(source, target, shape, where)


def _pipe(source: Connection, target: Connection, shape: Shape, where: sql.Composed) -> int:
    """Copy rows from shard to shard as they are, and return how many."""
    names = {"table": sql.Identifier(shape.name), "names": sql.SQL(", ").join(map(sql.Identifier, shape.written))}
    read = sql.SQL("copy (select {names} from {table} where {where}) to stdout (format binary)")
    write = sql.SQL("copy {table} ({names}) from stdin (format binary)").format(**names)
    with source.cursor() as giver, target.cursor() as taker:
        with giver.copy(read.format(where=where, **names)) as rows, taker.copy(write) as into:
            for data in rows:
                into.write(data)
        return taker.rowcount


def _noted(source: Connection) -> set[tuple[str, str]]:
    """The (table, trigger) that there are."""
    return set(source.execute("select tgrelid::regclass::text, tgname from pg_trigger").fetchall())


def _note(shape: Shape, event: str) -> sql.Composed:
    moment, age = _NOTES[event]
    rows = sql.SQL("new table as new_rows" if age == "new" else "old table as old_rows")
    name, what = sql.Identifier(f"note_{event}"), sql.Identifier(f"note_{age}_{'rows' if shape.by_id else 'slots'}")
    statement = "create trigger {} {} on {} referencing {} for each statement execute function {}()"
    return sql.SQL(statement).format(name, sql.SQL(moment), sql.Identifier(shape.name), rows, what)
