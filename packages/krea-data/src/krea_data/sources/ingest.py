"""From any source into a table: bytes first, by their hash, then the row; what is there already is not read again."""

import errno
import hashlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from krea_data.checks import check_row
from krea_data.interfaces import Blobs, Table
from krea_data.rows import Row
from krea_data.sources.entries import Entry, Source, Unavailable
from krea_data.sources.known import asker

__all__ = ["Fillable", "Ingested", "ingest", "row_id"]

OnRows = Callable[[int, int | None], None]
"""Called with how many entries are done and how many there are, None where the source cannot tell."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_CHUNK = 256  # keys to ask the table for, and rows to add, at once
_HELD_BYTES = 64 << 20  # by the entries of a chunk
_WAIT_S = 2.0  # rows wait no longer than this to be added
_ID_BYTES = 900
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of one blob; anything else is wrong with the store


class Fillable(Table, Protocol):
    """A table that takes in rows."""

    def add(self, rows: Iterable[Row]) -> int:
        """Take in rows without their results, ignoring ids that are there already; return how many were new."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingested:
    """What became of the entries of a source."""

    new: int = 0  # rows that were added
    there: int = 0  # entries that the table had already, or that came twice
    without: int = 0  # of the new rows those without bytes
    still: int = 0  # rows without bytes that were tried again in vain


@dataclass(frozen=True, slots=True)
class _Job:
    entry: Entry
    id: str
    earlier: str | None  # the row without bytes that this one stands in for


@dataclass(slots=True)
class _Tally:
    new: int = 0
    there: int = 0
    without: int = 0
    still: int = 0

    def done(self) -> int:
        return self.new + self.there + self.still


def row_id(name: str, key: str) -> str:
    """The id of a row: "<name>/<key>", with what a table cannot hold written out, and long keys cut to a hash."""
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in key)
    whole = f"{name}/{text}"
    if len(whole.encode()) <= _ID_BYTES:
        return whole
    short = whole.encode()[: _ID_BYTES - 65].decode(errors="ignore")
    return f"{short}~{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"


def ingest(
    table: Fillable,
    blobs: Blobs,
    source: Source,
    on_rows: OnRows = lambda done, total: None,
    *,
    workers: int = 8,
) -> Ingested:
    """Take in what the table lacks of a source, in the source's order, with `workers` reads at a time.

    Whenever it ends, killed or not, doing it again takes in the rest and nothing twice. An entry whose bytes cannot be
    had becomes a row without a blob whose meta has the `problem`; if that may pass (`problem_passes`), it is tried
    again the next time, and its bytes come as the row "<name>@2/<key>". Raises ValueError for a source that is not
    what it should be, and what the table and the store raise, but for a store that is full: that is the row's problem.
    """
    if not _NAME.fullmatch(source.name):
        raise ValueError(f"{source.name!r} is no name for a source; use 1 to 40 of a-z, 0-9, dot, dash, underscore")
    if workers < 1:
        raise ValueError(f"workers {workers} is below 1; use 1 to read one entry after the other")
    tally, total = _Tally(), source.total()
    rows: list[Row] = []
    since = time.monotonic()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ingest")
    try:
        for row in _taken(pool, blobs, _missing(table, source, tally), 4 * workers, tally):
            rows.append(row)
            if len(rows) >= _CHUNK or time.monotonic() - since > _WAIT_S:
                _add(table, rows, tally)
                rows, since = [], time.monotonic()
                on_rows(tally.done(), total)
        _add(table, rows, tally)
    finally:
        pool.shutdown(cancel_futures=True)
    on_rows(tally.done(), total)
    return Ingested(new=tally.new, there=tally.there, without=tally.without, still=tally.still)


def _add(table: Fillable, rows: list[Row], tally: _Tally) -> None:
    if rows:
        new = table.add(rows)
        tally.new += new
        tally.there += len(rows) - new
        tally.without += sum(not row.blob for row in rows)


def _missing(table: Table, source: Source, tally: _Tally) -> Iterator[_Job]:
    """The entries that the table has no row for, or one that may get its bytes yet."""
    first, second = source.name, f"{source.name}@2"
    ask = asker(table, (f"{first}/", f"{second}/"))
    for chunk in _chunks(source.entries()):
        jobs = {row_id(first, entry.key): entry for entry in reversed(chunk)}  # of equal keys the first counts
        tally.there += len(chunk) - len(jobs)
        found = ask(list(jobs))
        opened = {one: row_id(second, jobs[one].key) for one, may_come in found.items() if may_come}
        settled = ask(list(opened.values())) if opened else {}
        for one in reversed(jobs):
            again = opened.get(one)
            if one not in found:
                yield _Job(jobs[one], one, None)
            elif again is not None and again not in settled:
                yield _Job(jobs[one], again, one)
            else:
                tally.there += 1


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    chunk, held = list[Entry](), 0
    for entry in entries:
        chunk.append(entry)
        held += entry.held
        if len(chunk) >= _CHUNK or held >= _HELD_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _taken(pool: ThreadPoolExecutor, blobs: Blobs, jobs: Iterable[_Job], window: int, tally: _Tally) -> Iterator[Row]:
    """The rows of the jobs in their order; `window` of them are under way."""
    running: deque[Future[Row]] = deque()

    def oldest() -> Iterator[Row]:
        row = running.popleft().result()
        if row.blob or "instead_of" not in row.meta:
            yield row
        else:
            tally.still += 1

    for job in jobs:
        running.append(pool.submit(_take, blobs, job))
        if len(running) >= window:
            yield from oldest()
    while running:
        yield from oldest()


def _take(blobs: Blobs, job: _Job) -> Row:
    """Read an entry and store its bytes; the row says what went wrong."""
    meta, key = dict[str, Any](), ""
    try:
        meta |= job.entry.meta()
        content = job.entry.read()
        meta |= content.meta
        key = _stored(blobs, content.data)
    except Unavailable as error:
        meta |= error.meta | {"problem": error.reason[:1000], "problem_passes": error.passing}
    except _Unreadable as error:
        meta |= {"problem": str(error), "problem_passes": True}
    except OSError as error:
        if getattr(error, "of_store", False):
            raise
        meta |= {"problem": f"it cannot be read: {error.strerror or error}"[:1000], "problem_passes": True}
    if job.earlier is not None:
        meta["instead_of"] = job.earlier
    return _storable(Row(id=job.id, blob=key, meta=meta))


class _Unreadable(Exception):  # noqa: N818
    """The store had no room for these bytes."""


def _stored(blobs: Blobs, data: bytes) -> str:
    try:
        return blobs.put(data)
    except OSError as error:
        if error.errno in _FULL:
            raise _Unreadable(f"it was read, but could not be stored: {error.strerror or error}") from error
        error.of_store = True  # type: ignore[attr-defined]
        raise


def _storable(row: Row) -> Row:
    """The row, or one with less meta where the table would refuse it."""
    try:
        check_row(row)
    except ValueError as error:
        kept: dict[str, Any] = {
            name: row.meta.get(name) for name in ("problem_passes", "instead_of") if name in row.meta
        }
        said = "".join(letter for letter in str(error) if letter.isprintable())[:300]
        kept |= {"source": row.id.partition("/")[0], "licence": "unknown", "author": "unknown", "notes": [said]}
        kept |= {} if row.blob else {"problem": "its meta cannot be stored, and there are no bytes"}
        return Row(id=row.id, blob=row.blob, meta=kept)
    return row
