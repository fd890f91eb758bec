"""Rows as a stream in Arrow's IPC format: the schema, batches of a page each, and a last batch that says it is all.

Text is utf8, JSON is utf8 too (its field has the metadata {"krablet": "json"}), times are timestamps in microseconds
of UTC, `kept` is a bool; everything but the id may be null. The last batch has no rows and the metadata `krablet.end`
with {"rows": how many there were, "missing": [shards that did not answer]}; without it a stream was cut off. Any
reader of Arrow streams can read it: `pyarrow.ipc.open_stream(file).read_all()`.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

try:
    import pyarrow as pa
except ImportError as error:
    raise ImportError("streams of rows need pyarrow; install krea-data[serve]") from error

from krea_data.krablet.readers.plain import plain_cells, row_of
from krea_data.krablet.readers.selects import Column
from krea_data.krablet.rpc.errors import Broken
from krea_data.rows import Row

__all__ = ["MEDIA_TYPE", "Writer", "batches", "readable", "rows_of", "schema"]

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_END = b"krablet.end"
_TYPES = {"text": pa.utf8(), "json": pa.utf8(), "time": pa.timestamp("us", "UTC"), "bool": pa.bool_()}


def schema(columns: Sequence[Column]) -> pa.Schema:
    """The schema of these columns."""
    return pa.schema(
        [
            pa.field(
                column.name,
                _TYPES[column.type],
                nullable=column.name != "id",
                metadata={"krablet": "json"} if column.type == "json" else None,
            )
            for column in columns
        ]
    )


class Writer:
    """Turns pages into the bytes of one stream, a piece at a time."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._schema = schema(columns)
        self._sink = _Sink()
        self._writer = pa.ipc.new_stream(self._sink, self._schema)

    def page(self, rows: Sequence[Sequence[Any]]) -> bytes:
        """The bytes of these rows, each a cell per column; the first piece has the schema too."""
        cells = zip(*rows, strict=True)
        arrays = [pa.array(list(part), field.type) for part, field in zip(cells, self._schema, strict=True)]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        return self._sink.taken()

    def end(self, rows: int, missing: Sequence[str]) -> bytes:
        """The bytes that close the stream."""
        said = json.dumps({"rows": rows, "missing": list(missing)})
        empty = pa.RecordBatch.from_pylist([], schema=self._schema)
        self._writer.write_batch(empty, custom_metadata={_END.decode(): said})
        self._writer.close()
        return self._sink.taken()


def batches(pieces: Iterable[bytes], ended: Callable[[dict[str, Any]], None] | None = None) -> Iterator[pa.RecordBatch]:
    """The batches with rows of a stream that comes in pieces; `ended` gets what the end says.

    `Broken` if the stream ends before its end.
    """
    source = io.BufferedReader(_Pieces(iter(pieces)), 1 << 16)
    whole = False
    try:
        with pa.ipc.open_stream(source) as reader:
            while True:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                if metadata is not None and _END in metadata:
                    whole = True
                    if ended is not None:
                        ended(json.loads(metadata[_END]))
                elif batch.num_rows:
                    yield batch
    except StopIteration:
        pass
    except pa.ArrowInvalid as error:
        raise Broken(f"the stream of rows is no Arrow stream or was cut off: {error}") from error
    if not whole:
        raise Broken("the stream of rows was cut off")


def rows_of(batch: pa.RecordBatch) -> Iterator[Row]:
    """The rows of a batch that has all columns: id, blob, meta, and value, dropped, done_at of every task."""
    names = batch.schema.names
    tasks = [name.removesuffix(".value") for name in names[3::3]]
    cells = [
        (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for column in batch.columns
    ]
    for line in zip(*cells, strict=True):
        yield row_of(plain_cells(tasks, line))


def readable(columns: Sequence[Column], cells: Sequence[Any]) -> dict[str, Any]:
    """The cells by column as people write them in JSON; times in ISO form."""
    found: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=True):
        if cell is not None and column.type == "json":
            found[column.name] = json.loads(cell)
        elif cell is not None and column.type == "time":
            found[column.name] = datetime.fromtimestamp(cell / 1e6, UTC).isoformat()
        else:
            found[column.name] = cell
    return found


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        part = bytes(data)
        self._parts.append(part)
        return len(part)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file, read as they are needed."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count
