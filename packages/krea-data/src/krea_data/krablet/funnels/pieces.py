"""What requests write to the rows of one shard, column by column, and how several requests become one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias
from uuid import UUID

from krea_data.krablet.records.rules import UPDATE, Write, joined

__all__ = ["Columns", "Joins", "Piece", "Rows", "merged"]

Columns: TypeAlias = Sequence[Sequence[Any] | None]
"""The values of every column of a record, row by row; None where no row has any."""
Joins: TypeAlias = Sequence[Callable[[Any, Any], Any]]


@dataclass(eq=False, slots=True)
class Rows:
    """Writes to rows: `ops` says what each one is, None that all are updates."""

    slots: Sequence[int]
    ids: Sequence[str]  # each once
    ops: Sequence[int] | None
    columns: Columns
    upsert: tuple[bytes, dict[str, Any]] | None = None  # the statement that does it and its values, if made already

    @property
    def size(self) -> int:
        """Bytes, about."""
        if self.upsert is not None:
            return sum(len(value.packed) for value in self.upsert[1].values())
        texts = [text for column in self.columns if column is not None for text in column if isinstance(text, str)]
        return 32 * len(self.ids) + sum(map(len, texts))

    def some(self, places: Sequence[int]) -> "Rows":
        """These rows alone."""
        return Rows(
            [self.slots[n] for n in places],
            [self.ids[n] for n in places],
            None if self.ops is None else [self.ops[n] for n in places],
            [None if column is None else [column[n] for n in places] for column in self.columns],
        )

    def widened(self, columns: int) -> None:
        """Add empty columns up to so many: the record has got them since."""
        if columns > len(self.columns):
            self.columns, self.upsert = [*self.columns, *[None] * (columns - len(self.columns))], None


@dataclass(eq=False, slots=True)
class Piece:
    """What one request writes to some slots; `refused` says in the end which of its rows were not stored, and why."""

    producer: UUID
    seq: int
    floor: int  # the producer sends no request below this any more
    rows: Rows
    refused: dict[str, str] = field(default_factory=dict)

    def part(self, keep: Callable[[int], bool]) -> "Piece | None":
        """The rows whose slots are to be kept, or None if there are none."""
        kept = {slot for slot in set(self.rows.slots) if keep(slot)}
        places = [place for place, slot in enumerate(self.rows.slots) if slot in kept]
        if len(places) == len(self.rows.slots):
            return self
        if not places:
            return None
        return Piece(self.producer, self.seq, self.floor, self.rows.some(places), self.refused)


def merged(joins: Joins, pieces: Sequence[Piece]) -> Rows:
    """What all pieces do to each row."""
    parts = [piece.rows for piece in pieces]
    if len(parts) == 1:
        return parts[0]
    ids = list(chain.from_iterable(part.ids for part in parts))
    if len(set(ids)) < len(ids):
        return _joined(joins, parts)
    sizes = [len(part.ids) for part in parts]
    ops = _chained([part.ops for part in parts], sizes)
    return Rows(
        list(chain.from_iterable(part.slots for part in parts)),
        ids,
        None if ops is None else [UPDATE if op is None else op for op in ops],
        [_chained(columns, sizes) for columns in zip(*(part.columns for part in parts), strict=True)],
    )


def _joined(joins: Joins, parts: Sequence[Rows]) -> Rows:
    """The same where several write to one row."""
    slots: dict[str, int] = {}
    writes: dict[str, Write] = {}
    for part in parts:
        empty = (None,) * len(part.ids)
        ops = part.ops or (UPDATE,) * len(part.ids)
        columns = [empty if column is None else column for column in part.columns]
        for slot, row_id, write in zip(part.slots, part.ids, map(list, zip(ops, *columns, strict=True)), strict=True):
            old = writes.get(row_id)
            writes[row_id] = write if old is None else joined(joins, old, write)
            slots[row_id] = slot
    ops, *columns = zip(*writes.values(), strict=True)
    return Rows(list(slots.values()), list(slots), ops if any(ops) else None, columns)


def _chained(columns: Columns, sizes: Sequence[int]) -> Sequence[Any] | None:
    """The parts of a column one after another, each of them so many rows."""
    if all(column is None for column in columns):
        return None
    parts = zip(columns, sizes, strict=True)
    return list(chain.from_iterable((None,) * size if column is None else column for column, size in parts))
