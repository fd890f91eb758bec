"""Where the pieces of a batch are stored: on the shards of their slots, wherever these are just now."""

from collections.abc import Sequence

from psycopg.errors import UndefinedColumn, UndefinedTable

from krea_data.krablet.funnels.flush import Results, Target, store
from krea_data.krablet.funnels.pieces import Piece
from krea_data.krablet.records.rules import Record
from krea_data.krablet.records.tables import declare_record
from krea_data.krablet.shards import Shards, StaleMap

__all__ = ["store_routed", "widened"]


def store_routed(shards: Shards, target: Target, pieces: Sequence[Piece]) -> None:
    """Store pieces on the shards of their slots, in one transaction on each; they follow a slot that moves."""
    todo = list(pieces)
    while todo:
        slots = shards.view.slots
        left: list[Piece] = []
        for number in sorted({slots.shards[slot] for piece in todo for slot in piece.rows.slots}):
            here = [piece.part(lambda slot, n=number, s=slots.shards: s[slot] == n) for piece in todo]
            part = [piece for piece in here if piece is not None]
            try:
                shards.guarded(number, lambda c, d, part=part: store(c, d, target, part), slots=slots)
            except StaleMap:
                left += part
            except (UndefinedTable, UndefinedColumn):  # its declaration was cut short
                if not isinstance(target, Record):
                    raise
                shards.attempt(number, lambda c: declare_record(c, target))
                left += part
        todo = left


def widened(target: Target, pieces: Sequence[Piece]) -> Target:
    """The target, for which writes from before it had all its columns get empty ones."""
    width = len((target.record if isinstance(target, Results) else target).columns)
    for piece in pieces:
        piece.rows.widened(width)
    return target
