"""A list of addresses in Parquet files: a column of URLs, and what the other columns say of each picture."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError("reading Parquet needs pyarrow; install krea-data[sources]") from error

from krea_data.sources.download import Downloads, download, pool
from krea_data.sources.entries import Entry, lost
from krea_data.sources.meta import described

__all__ = ["UrlSource"]

_ROWS = 1000  # of the list, at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlSource:
    """The rows of Parquet files, in their order. Give `ingest` as many workers as downloads are to run at a time.

    `column` has the URLs; the others are taken for what their names say (`columns` gives other names for them, such as
    {"TEXT": "caption"}). The key is a hash of URL and caption, or the column `key`: so the list may grow or be sorted,
    and a URL with two captions is two rows.
    """

    name: str
    files: Sequence[Path]
    column: str = "url"
    key: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    author: str | None = None
    rules: Downloads = field(default_factory=Downloads)
    connections: int = 16  # kept to one host

    def __post_init__(self) -> None:
        if not self.files or self.key == self.column:
            raise ValueError("give one Parquet file or more, and a `key` that is not the column of the URLs")

    def total(self) -> int | None:
        """The rows of all files."""
        rows = 0
        for path in self.files:
            with self._opened(path) as file:
                rows += file.metadata.num_rows
        return rows

    def entries(self) -> Iterator[Entry]:
        """One entry per row, and one that says so where a file is damaged; ValueError for what is no such list."""
        manager = pool(self.connections)
        for path in self.files:
            done = 0
            with self._opened(path) as file:
                try:
                    for batch in file.iter_batches(batch_size=_ROWS):
                        for row in _rows(batch):
                            yield self._entry(manager, path, row)
                        done += batch.num_rows
                except (pa.ArrowInvalid, OSError) as error:
                    said = described({}, source=self.name, licence=self.licence, author=self.author)
                    problem = f"{path.name} cannot be read after row {done}: {' '.join(str(error).split())[:300]}"
                    yield lost(f"{path.name}/(broken at {done})", problem, said | {"file": path.name}, passing=True)

    def _opened(self, path: Path) -> "pq.ParquetFile":
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} cannot be read as Parquet ({error}); give a whole Parquet file") from error
        names = file.schema_arrow.names
        for column in (self.column, self.key):
            if column is not None and column not in names:
                raise ValueError(f"{path} has no column {column!r}; choose from {', '.join(names)}")
        return file

    def _entry(self, manager: Any, path: Path, row: dict[str, Any]) -> Entry:
        url = row.pop(self.column)
        url = url.strip() if isinstance(url, str) else ""
        stated = {self.columns.get(name, name): value for name, value in row.items() if name != self.key}
        meta = described(stated, source=self.name, licence=self.licence, author=self.author)
        meta |= {"url": described({"url": url}, source="").get("url", ""), "file": path.name}
        key = self._key(url, str(meta.get("caption", "")), row)
        if not url:
            return lost(key, "the list has no URL for it", meta)
        return Entry(key=key, meta=lambda: meta, read=lambda: download(manager, url, self.rules))

    def _key(self, url: str, caption: str, row: Mapping[str, Any]) -> str:
        if self.key is not None and row[self.key] is not None:
            return str(row[self.key])
        rest = "" if url else repr(sorted((name, str(value)) for name, value in row.items()))
        return hashlib.sha256(f"{url}\0{caption}\0{rest}".encode(errors="surrogatepass")).hexdigest()[:32]


def _rows(batch: "pa.RecordBatch") -> list[dict[str, Any]]:
    """The rows of a batch as Python values; text that is no UTF-8 is shown with marks in place of what is not."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        names = batch.schema.names
        columns = [_lenient(column) for column in batch.columns]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _lenient(column: "pa.Array[Any]") -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
        return [None if one is None else one.decode(errors="replace") for one in raw.to_pylist()]
