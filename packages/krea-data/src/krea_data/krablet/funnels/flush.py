"""One batch of a funnel becomes one transaction: marks of the requests, then the rows, all or nothing.

Usually it goes out in one piece, with one wait. Where the database refuses a value, the batch is done again in halves
under savepoints until what it refuses is alone; that is noted and the rest is stored, still in one transaction. Where
requests turn out to be stored already, by an earlier try or another funnel, they are left out.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakSet

import psycopg
from psycopg import Connection

from krea_data.checks import result_text
from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.funnels.marks import MARKED, STALE, Mark, mark_values, marking, note_refusals, refusals, stored
from krea_data.krablet.funnels.pieces import Joins, Piece, Rows, merged
from krea_data.krablet.queues.answers import Answer, store_rows
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.records.tables import upsert
from krea_data.rows import Result

__all__ = ["Results", "Target", "store"]

_POISON = ("21", "22", "23", "54")  # cardinality, data, constraint, program limit: about a value, and for good
_PLANNED_ONCE: WeakSet[Connection] = WeakSet()  # connections that have been told to
_UNKNOWN = "its id is not in the table; add the row first"


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a task as a target; every write replaces the whole result."""

    task: str

    @property
    def record(self) -> Record:
        """What a result looks like as a record."""
        return Record(self.task, (Column("value", "json"), Column("dropped", "text")))

    def text(self, row_id: str, value: Any, drop: str | None) -> str:
        """A result's value as JSON, or ValueError."""
        if not isinstance(value, dict):
            raise ValueError(f"the value of {self.task} for {row_id} is no object: {value!r:.80}")
        return result_text(Result(value=value, drop=drop), self.task, row_id)


Target: TypeAlias = Record | Results


def joins_of(target: Target) -> Joins:
    """How two values of a column become one."""
    return (target.record if isinstance(target, Results) else target).joins


def store(connection: Connection, dag: Dag, target: Target, pieces: Sequence[Piece]) -> None:
    """Store all of it in one transaction, or raise what has nothing to do with its values; see `Piece.refused`."""
    while pieces:
        marks = _marks(pieces)
        try:
            _store(connection, dag, target, pieces, marks)
            return
        except psycopg.Error as error:
            connection.rollback()
            if error.sqlstate == STALE:
                raise StaleDag from error
            if error.sqlstate == MARKED:
                pieces = _unstored(connection, pieces, marks)
            elif (error.sqlstate or "").startswith(_POISON):
                try:
                    _store_apart(connection, dag, target, pieces, marks)
                    return
                except psycopg.Error as again:
                    if again.sqlstate == STALE:
                        raise StaleDag from again
                    if again.sqlstate != MARKED:
                        raise
            else:
                raise


def _store(connection: Connection, dag: Dag, target: Target, pieces: Sequence[Piece], marks: Sequence[Mark]) -> None:
    rows = merged(joins_of(target), pieces)
    if isinstance(target, Results):
        with connection.transaction():
            connection.execute(marking(), mark_values(marks, dag.version), prepare=True)
            _note(connection, pieces, _put(connection, dag, target, rows))
        return
    statement, values = rows.upsert or upsert(target, rows)
    _plan_once(connection)
    connection.execute(marking(statement), values | mark_values(marks, dag.version), prepare=True)


def _plan_once(connection: Connection) -> None:
    """Spare the database to plan for the values of every batch: there is one way to do these statements."""
    if connection not in _PLANNED_ONCE:
        connection.execute("set plan_cache_mode = force_generic_plan")
        _PLANNED_ONCE.add(connection)


def _store_apart(
    connection: Connection, dag: Dag, target: Target, pieces: Sequence[Piece], marks: Sequence[Mark]
) -> None:
    """`store`, with savepoints around what the database refuses."""
    rows = merged(joins_of(target), pieces)
    by_id: dict[str, list[tuple[Piece, int]]] = defaultdict(list)
    for piece in pieces:
        for place, row_id in enumerate(piece.rows.ids):
            by_id[row_id].append((piece, place))

    def attempt(part: Rows, givers: Sequence[Piece]) -> None:
        """Store some rows, or find out who of their givers gave what is refused."""
        try:
            with connection.transaction():
                _note(connection, givers, _put(connection, dag, target, part), note=False)
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith(_POISON):
                raise
            size = len(part.ids)
            if size > 1:
                attempt(part.some(range(size // 2)), givers)
                attempt(part.some(range(size // 2, size)), givers)
                return
            row_id = part.ids[0]
            writes = by_id[row_id] if givers is pieces else []
            if len(writes) < 2:
                giver = writes[0][0] if writes else givers[0]
                giver.refused[row_id] = _said(error)
                return
            for giver, place in writes:  # each write by itself, in their order
                attempt(giver.rows.some([place]), [giver])

    with connection.transaction():
        connection.execute(marking(), mark_values(marks, dag.version))
        attempt(rows.some(sorted(range(len(rows.ids)), key=lambda n: (rows.slots[n], rows.ids[n]))), pieces)
        _note(connection, pieces, {})


def _put(connection: Connection, dag: Dag, target: Target, rows: Rows) -> dict[str, str]:
    """Write rows inside a transaction, and return those that have no place."""
    if isinstance(target, Record):
        connection.execute(*upsert(target, rows))
        return {}
    values, drops = (column or [None] * len(rows.ids) for column in rows.columns)
    answers = sorted(map(Answer, rows.slots, rows.ids, values, drops), key=lambda answer: answer.id)
    return dict.fromkeys(store_rows(connection, dag, target.task, answers), _UNKNOWN)


def _note(connection: Connection, pieces: Sequence[Piece], refused: dict[str, str], *, note: bool = True) -> None:
    """Tell the pieces what was refused, and remember it for requests that are sent again."""
    for piece in pieces if refused else ():
        piece.refused.update({row_id: refused[row_id] for row_id in piece.rows.ids if row_id in refused})
    found = [
        (slot, piece.producer, piece.seq, row_id, piece.refused[row_id])
        for piece in pieces
        for slot, row_id in (zip(piece.rows.slots, piece.rows.ids, strict=True) if piece.refused else ())
        if row_id in piece.refused
    ]
    if found and note:
        note_refusals(connection, found)


def _unstored(connection: Connection, pieces: Sequence[Piece], marks: Sequence[Mark]) -> list[Piece]:
    """What of the pieces is not stored yet; what was refused when the rest was stored is said again."""
    done = stored(connection, marks)
    left: list[Piece] = []
    for piece in pieces:
        old = {slot for slot in set(piece.rows.slots) if (slot, piece.producer, piece.seq) in done}
        if old:
            said = refusals(connection, old, piece.producer, piece.seq)
            piece.refused.update({row_id: said[row_id] for row_id in piece.rows.ids if row_id in said})
        part = piece.part(lambda slot, old=old: slot not in old)
        if part is not None:
            left.append(part)
    return left


def _marks(pieces: Sequence[Piece]) -> list[Mark]:
    return [(piece.producer, piece.seq, piece.floor, set(piece.rows.slots)) for piece in pieces]


def _said(error: psycopg.Error) -> str:
    return f"{error.sqlstate}: {str(error).partition(chr(10))[0]}"
