"""Arrays in PostgreSQL's binary form: psycopg's own list dumper walks every item in Python and is several times slower.

The form: dimensions, has-nulls flag, item type, then length and lower bound of the one dimension, then every item with
its length in bytes (-1 for null), all big-endian.
"""

import struct
from collections.abc import Sequence
from itertools import chain, repeat

from psycopg import Connection
from psycopg.adapt import Dumper
from psycopg.pq import Format

__all__ = ["Ints", "Texts", "register_arrays"]

_INT8, _INT8_ARRAY, _TEXT, _TEXT_ARRAY = 20, 1016, 25, 1009  # type numbers, fixed in PostgreSQL's catalogue
_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)


class Ints:
    """A parameter of type bigint[]."""

    __slots__ = ("packed",)

    def __init__(self, items: Sequence[int]) -> None:
        size = len(items)
        self.packed = _head(0, _INT8, size) + struct.pack(
            ">" + "iq" * size, *chain.from_iterable(zip(repeat(8), items))
        )


class Texts:
    """A parameter of type text[]; None is null. Items must not contain NUL."""

    __slots__ = ("packed",)

    def __init__(self, items: Sequence[str | None]) -> None:
        raws = [None if item is None else item.encode() for item in items]
        parts = [_NULL if raw is None else _LENGTH.pack(len(raw)) + raw for raw in raws]
        self.packed = _head(1, _TEXT, len(items)) + b"".join(parts)


class _IntsDumper(Dumper):
    format = Format.BINARY
    oid = _INT8_ARRAY

    def dump(self, obj: Ints) -> bytes:
        return obj.packed


class _TextsDumper(Dumper):
    format = Format.BINARY
    oid = _TEXT_ARRAY

    def dump(self, obj: Texts) -> bytes:
        return obj.packed


def register_arrays(connection: Connection) -> None:
    """Let this connection take `Ints` and `Texts` as parameters."""
    connection.adapters.register_dumper(Ints, _IntsDumper)
    connection.adapters.register_dumper(Texts, _TextsDumper)


def _head(nulls: int, item: int, length: int) -> bytes:
    return (
        struct.pack(">iii", 1, nulls, item) + struct.pack(">ii", length, 1)
        if length
        else struct.pack(">iii", 0, 0, item)
    )
