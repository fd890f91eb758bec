"""The work of one worker: lease a range, go through it page by page, take another, in the end a part of another's.

The next page is read while the function works on this one, but handed to it only when this one is stored: a worker that
is killed repeats at most one page. A page is a batch, or several where the function gets through them in milliseconds:
to store each of these costs more than to call it.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import psycopg

from krea_data.krablet.pluck.calls import QUICK_S, Caller, Said, Trouble, answered
from krea_data.krablet.pluck.maps import sweep
from krea_data.krablet.pluck.plan import largest, steal
from krea_data.krablet.pluck.question import Job
from krea_data.krablet.pluck.rows import Raw, Reader
from krea_data.krablet.pluck.spans import Fault, Moved, Page, Span, advance, current, give_back, left, lend, renew
from krea_data.krablet.queues.answers import Answer
from krea_data.krablet.table import Krablet

__all__ = ["Done", "Mapped", "Stopped", "Worker"]

T = TypeVar("T")
_POLL_S, _LONGEST_POLL_S = 0.01, 0.1
_PAGE_ROWS = 1024  # of quick batches
_SYNC_S = 0.2  # so much of quick pages may be done again after a crash of the server
_CRASHES = 4  # of workers at the same row alone, then the row is to blame
_SHRINK = 3  # every crash divides the page by 2 to this
_POISON = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """How many rows the function answered, and how many it failed for (see `Krablet.dead`)."""

    rows: int = 0
    failed: int = 0

    def __add__(self, other: "Mapped") -> "Mapped":
        return Mapped(rows=self.rows + other.rows, failed=self.failed + other.failed)


Done = Callable[[Mapped], None]


class Stopped(Exception):  # noqa: N818 - not an error
    """The map was cancelled, or this worker is to go."""


class _Lost(Exception):  # noqa: N818 - nor this
    """The range is not as this worker had it."""


class Worker:
    """Works on one map of a krablet. `pulse` is to be called while the function works, and holds the lease."""

    def __init__(
        self, table: Krablet, job: Job, name: str, report: Done = lambda _: None, leave: Callable[[], bool] = bool
    ) -> None:
        self.table, self.job, self.name = table, job, name
        self._report, self._leave = report, leave
        self._reader = Reader(job.question)
        self._held: tuple[int, Span] | None = None
        self._renewed = self._synced = time.monotonic()

    def work(self, caller: Caller) -> None:
        """Work until no range is left to anybody, or until the map or this worker is stopped."""
        try:
            while (found := self._next()) is not None:
                self._held = found
                self._renewed = time.monotonic()
                with contextlib.suppress(_Lost):
                    self._walk(caller, *found)
                self._held = None
        except Stopped:
            pass
        finally:
            self._each(lambda c: give_back(c, self.job.name, self.name))

    def pulse(self) -> None:
        """Hold the lease in time; `Stopped` when it is time to go."""
        if self._leave():
            raise Stopped
        if self._held is None or time.monotonic() - self._renewed < self.job.limits.lease_s / 3:
            return
        number, span = self._held
        self._renewed = time.monotonic()
        if not self.table.guarded(number, lambda c, _: renew(c, self.job.name, span, self.job.limits.lease_s)):
            raise Stopped if self._halted(number) else _Lost

    def _next(self) -> tuple[int, Span] | None:
        """A free range, or half of another worker's, or None when all are done."""
        job, pause_s = self.job, _POLL_S
        while True:
            if self._leave():
                raise Stopped
            for number in self._shards():
                span = self.table.guarded(number, lambda c, _: lend(c, job.name, self.name, job.limits.lease_s))
                if span is not None:
                    return number, span
            rest = self._each(lambda c: left(c, job.name))
            if not any(rest):
                if not sweep(self.table, job):
                    return None
                continue
            if any(self._halted(number) for number in self._shards()):
                raise Stopped
            if (stolen := self._stolen()) is not None:
                return stolen
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LONGEST_POLL_S)

    def _stolen(self) -> tuple[int, Span] | None:
        sizes = self._each(lambda c: largest(c, self.job))
        for _, number in sorted(zip(sizes, self._shards(), strict=True), reverse=True):
            span = self.table.guarded(number, lambda c, d: steal(c, d, self.job, self.name))
            if span is not None:
                return number, span
        return None

    def _walk(self, caller: Caller, number: int, span: Span) -> None:
        """Work through a range until it ends or somebody else has it."""
        size = self._limit(span)
        rows, more = self._read(number, span, span.cursor, size)
        while True:
            page, said = rows[:size], []
            if page:
                started = time.monotonic()
                condemned = span.crashes >= _CRASHES and len(page) == 1
                if not condemned:
                    caller.start(page)
                size = max(size, self.job.limits.batch)
                if more and len(rows) - len(page) < size:
                    read, more = self._read(number, span, rows[-1].id, size)
                    rows += read
                said = [self._condemned(span)] if condemned else answered(caller, page, self.job.limits.batch)
                size = self._size(size, page, said, time.monotonic() - started)
            after = rows[len(said) :]
            rest, running = self._store(number, span, page[: len(said)], said, after)
            if rest is None:
                return
            if not running:
                raise Stopped
            span, rows = rest, after
            if after and span.upper is not None and after[-1].id > span.upper:  # the rest is another worker's
                rows, more = [row for row in after if row.id <= span.upper], False
            if self._leave():
                raise Stopped

    def _size(self, size: int, page: Sequence[Raw], said: Sequence[Said], took_s: float) -> int:
        """Rows of the next page: more than a batch only while the function is quick."""
        batch = self.job.limits.batch
        if len(said) < len(page):
            return max(batch, len(said))
        return min(2 * size, max(batch, _PAGE_ROWS)) if len(page) == size and took_s < QUICK_S else size

    def _store(
        self, number: int, span: Span, rows: Sequence[Raw], said: Sequence[Said], after: Sequence[Raw]
    ) -> tuple[Span | None, bool]:
        """Store a page, the part of it that is still this worker's; returns the rest and whether the map goes on."""
        page, moved = self._advanced(number, span, self._page(span, rows, said, after))
        while moved is None:
            now = self.table.guarded(number, lambda c, _, s=span: current(c, self.job.name, s))
            if now is not None and now.cursor == page.cursor != span.cursor:  # the answer was lost, not the page
                moved = Moved(upper=now.upper, running=True)
                break
            if now is None or now.cursor != span.cursor:
                self._each(lambda c: give_back(c, self.job.name, self.name))
                raise _Lost
            mine = sum(1 for row in rows if now.upper is None or row.id <= now.upper)
            rows, said, after = rows[:mine], said[:mine], []
            page, moved = self._advanced(number, span, self._page(span, rows, said, after))
        self._renewed = time.monotonic()
        self._synced = self._renewed if page.sync else self._synced
        self._report(Mapped(rows=page.rows, failed=len(page.faults)))
        if page.done:
            return None, moved.running
        return replace(span, cursor=page.cursor, upper=moved.upper, crashes=0), moved.running

    def _advanced(self, number: int, span: Span, page: Page) -> tuple[Page, Moved | None]:
        """Store a page; returned as it was stored, since PostgreSQL may not take some of it."""
        job = self.job
        given = {"into": job.question.into, "worker": self.name, "lease_s": job.limits.lease_s}
        try:
            return page, self.table.guarded(number, lambda c, d: advance(c, d, job.name, span, page, **given))
        except _POISON:
            good = self.table.guarded(number, lambda c, _: _sifted(c, page))
            return good, self.table.guarded(number, lambda c, d: advance(c, d, job.name, span, good, **given))

    def _page(self, span: Span, rows: Sequence[Raw], said: Sequence[Said], after: Sequence[Raw]) -> Page:
        pairs = [(row, one) for row, one in zip(rows, said, strict=True) if one is not None]
        faults = [
            Fault(slot=r.slot, id=r.id, error=s.error, attempts=s.attempts) for r, s in pairs if isinstance(s, Trouble)
        ]
        return Page(
            cursor=rows[-1].id if rows else span.cursor,
            ahead=after[-1].id if after else "",
            done=not after,
            rows=len(rows) - len(faults),
            answers=[Answer(r.slot, r.id, s[0], s[1]) for r, s in pairs if isinstance(s, tuple)],
            faults=faults,
            sync=not after or time.monotonic() - self._synced > _SYNC_S,
        )

    def _read(self, number: int, span: Span, after: str, limit: int) -> tuple[list[Raw], bool]:
        """A page, and whether there may be more behind it."""
        read = self._reader.read
        rows = self.table.guarded(number, lambda c, d: read(c, d, after=after, upper=span.upper, limit=limit))
        return rows, len(rows) == limit

    def _limit(self, span: Span) -> int:
        """Fewer rows where workers were lost, so that a row that takes its worker down is soon alone."""
        return max(1, self.job.limits.batch >> _SHRINK * span.crashes)

    def _condemned(self, span: Span) -> Trouble:
        return Trouble(f"{span.crashes} workers were lost while they worked on this row", span.crashes)

    def _halted(self, number: int) -> bool:
        asked = "select state <> 'running' from map where name = %s"
        row = self.table.guarded(number, lambda c, _: c.execute(asked, (self.job.name,)).fetchone())
        return row is None or row[0]

    def _shards(self) -> range:
        return range(len(self.table.dsns))

    def _each(self, ask: Callable[[psycopg.Connection], T]) -> list[T]:
        return [self.table.guarded(number, lambda c, _: ask(c)) for number in self._shards()]


def _sifted(connection: psycopg.Connection, page: Page) -> Page:
    """The page where results that PostgreSQL cannot take, such as numbers out of range, are faults."""
    good: list[Answer] = []
    faults = list(page.faults)
    for answer in page.answers:
        try:
            connection.execute("select %s::jsonb", (answer.value,))
            good.append(answer)
        except _POISON as error:
            text = str(error).partition("\n")[0]
            faults.append(Fault(slot=answer.slot, id=answer.id, error=f"cannot be stored: {text}", attempts=1))
    return replace(page, answers=good, faults=faults, rows=page.rows - len(faults) + len(page.faults))
