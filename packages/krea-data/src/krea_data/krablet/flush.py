"""One batch of a funnel becomes one transaction: marks of the requests, then the rows, all or nothing.

Usually it goes out in one piece, with one wait. Where the database refuses a value, the batch is done again in halves
under savepoints until what it refuses is alone; that is noted and the rest is stored, still in one transaction. Where
requests turn out to be stored already, by an earlier try or another funnel, they are left out.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID

import psycopg
from psycopg import Connection

from krea_data.checks import result_text
from krea_data.krablet.answers import Answer, store_rows
from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.marks import MARKED, STALE, Mark, mark_statement, note_refusals, refusals, stored
from krea_data.krablet.record_tables import upsert
from krea_data.krablet.records import Column, Record, Write, joined
from krea_data.rows import Result

__all__ = ["Piece", "Results", "Target", "store"]

_POISON = ("21", "22", "23", "54")  # cardinality, data, constraint, program limit: about a value, and for good
# There is one way to do these statements, and to look for a better one each time costs more than to do them.
_PLANNED_ONCE = "set local plan_cache_mode = force_generic_plan"
_UNKNOWN = "its id is not in the table; add the row first"


@dataclass(eq=False, slots=True)
class Piece:
    """What one request writes to some slots; `refused` says in the end which of its rows were not stored, and why."""

    producer: UUID
    seq: int
    floor: int  # the producer sends no request below this any more
    slots: list[int]
    ids: list[str]  # each once
    writes: list[Write]
    refused: dict[str, str] = field(default_factory=dict)

    def part(self, keep: Callable[[int], bool]) -> "Piece | None":
        """The rows whose slots are to be kept, or None if there are none."""
        places = [place for place, slot in enumerate(self.slots) if keep(slot)]
        if len(places) == len(self.slots):
            return self
        if not places:
            return None
        return Piece(
            self.producer,
            self.seq,
            self.floor,
            [self.slots[n] for n in places],
            [self.ids[n] for n in places],
            [self.writes[n] for n in places],
            self.refused,
        )


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
_Rows: TypeAlias = dict[str, tuple[int, Write]]  # by id: slot and write


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
    rows = _rows(target, pieces)
    if isinstance(target, Results):
        with connection.transaction():
            connection.execute(*mark_statement(marks, dag.version), prepare=True)
            _note(connection, pieces, _put(connection, dag, target, rows))
        return
    statement, values = upsert(target, [slot for slot, _ in rows.values()], {i: w for i, (_, w) in rows.items()})
    with connection.pipeline(), connection.transaction():  # all of it in one round trip
        connection.execute(_PLANNED_ONCE, prepare=True)
        connection.execute(*mark_statement(marks, dag.version), prepare=True)
        connection.execute(statement, values, prepare=True)


def _store_apart(
    connection: Connection, dag: Dag, target: Target, pieces: Sequence[Piece], marks: Sequence[Mark]
) -> None:
    """`store`, with savepoints around what the database refuses."""
    rows = sorted(_rows(target, pieces).items(), key=lambda item: (item[1][0], item[0]))
    by_id: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        for row_id in piece.ids:
            by_id[row_id].append(piece)

    def attempt(part: _Rows, givers: Sequence[Piece]) -> None:
        """Store some rows, or find out who of their givers gave what is refused."""
        try:
            with connection.transaction():
                _note(connection, givers, _put(connection, dag, target, part), note=False)
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith(_POISON):
                raise
            if len(part) > 1:
                items, half = list(part.items()), len(part) // 2
                attempt(dict(items[:half]), givers)
                attempt(dict(items[half:]), givers)
                return
            (row_id, (slot, _)) = next(iter(part.items()))
            givers = by_id[row_id] if givers is pieces else givers
            if len(givers) == 1:
                givers[0].refused[row_id] = _said(error)
                return
            for giver in givers:  # each write by itself, in their order
                attempt({row_id: (slot, giver.writes[giver.ids.index(row_id)])}, [giver])

    with connection.transaction():
        connection.execute(*mark_statement(marks, dag.version))
        attempt(dict(rows), pieces)
        _note(connection, pieces, {})


def _put(connection: Connection, dag: Dag, target: Target, rows: _Rows) -> dict[str, str]:
    """Write rows inside a transaction, and return those that have no place."""
    if isinstance(target, Record):
        connection.execute(*upsert(target, [slot for slot, _ in rows.values()], {i: w for i, (_, w) in rows.items()}))
        return {}
    answers = [Answer(slot, row_id, write[1], write[2]) for row_id, (slot, write) in sorted(rows.items())]
    return dict.fromkeys(store_rows(connection, dag, target.task, answers), _UNKNOWN)


def _note(connection: Connection, pieces: Sequence[Piece], refused: dict[str, str], *, note: bool = True) -> None:
    """Tell the pieces what was refused, and remember it for requests that are sent again."""
    for piece in pieces if refused else ():
        piece.refused.update({row_id: refused[row_id] for row_id in piece.ids if row_id in refused})
    found = [
        (slot, piece.producer, piece.seq, row_id, piece.refused[row_id])
        for piece in pieces
        for slot, row_id in (zip(piece.slots, piece.ids, strict=True) if piece.refused else ())
        if row_id in piece.refused
    ]
    if found and note:
        note_refusals(connection, found)


def _unstored(connection: Connection, pieces: Sequence[Piece], marks: Sequence[Mark]) -> list[Piece]:
    """What of the pieces is not stored yet; what was refused when the rest was stored is said again."""
    done = stored(connection, marks)
    left: list[Piece] = []
    for piece in pieces:
        old = {slot for slot in piece.slots if (slot, piece.producer, piece.seq) in done}
        if old:
            said = refusals(connection, old, piece.producer, piece.seq)
            piece.refused.update({row_id: said[row_id] for row_id in piece.ids if row_id in said})
        part = piece.part(lambda slot, old=old: slot not in old)
        if part is not None:
            left.append(part)
    return left


def _marks(pieces: Sequence[Piece]) -> list[Mark]:
    return [(piece.producer, piece.seq, piece.floor, set(piece.slots)) for piece in pieces]


def _rows(target: Target, pieces: Sequence[Piece]) -> _Rows:
    """What all pieces do to each row."""
    joins = (target.record if isinstance(target, Results) else target).joins
    rows: _Rows = {}
    for piece in pieces:
        for slot, row_id, write in zip(piece.slots, piece.ids, piece.writes, strict=True):
            old = rows.get(row_id)
            rows[row_id] = slot, write if old is None else joined(joins, old[1], write)
    return rows


def _said(error: psycopg.Error) -> str:
    return f"{error.sqlstate}: {str(error).partition(chr(10))[0]}"
