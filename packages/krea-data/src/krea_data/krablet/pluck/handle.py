"""A map under way, as its caller sees it: progress, results as they come, errors, cancel."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from psycopg import Connection, sql

from krea_data.krablet.dag import Dag
from krea_data.krablet.errors import KrabletError
from krea_data.krablet.names import result
from krea_data.krablet.pluck.crew import Crew
from krea_data.krablet.pluck.display import Board, html_text, plain_text
from krea_data.krablet.pluck.maps import Progress, counted, stop, sweep
from krea_data.krablet.pluck.question import Job
from krea_data.krablet.pluck.spans import give_back
from krea_data.krablet.pluck.walk import Mapped
from krea_data.krablet.table import Krablet
from krea_data.rows import Result

__all__ = ["Failure", "Handle"]

_SOON_S, _LATER_S = 0.05, 0.5
_PAGE_ROWS = 1000
_SPANS = "select number, lower, cursor, upper, done, planned_at from span where map = %s order by lower, number"
_RESULTS = """
select i.id, r.value, r.dropped from images i join {} r using (slot, id)
where i.id > %(after)s {} and r.done_at >= %(since)s order by i.id limit %(limit)s"""
_ERRORS = """
select d.id, d.error, d.attempts, coalesce(d.worker, '') from dead d, map m
where m.name = %s and d.task = %s and d.died_at >= m.started_at order by d.id"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A row that the function failed for: the error in a line, the worker's traceback, calls that it took."""

    id: str
    error: str
    traceback: str
    attempts: int
    worker: str


class Handle:
    """A map that was started. It goes on in worker processes; those started here end with this process.

    Usable as a context manager, which stops the workers at its end; `pluck` resumes by the same name.
    """

    def __init__(self, table: Krablet, job: Job, crew: Crew, board: Board) -> None:
        self.table, self.job = table, job
        self._crew, self._board = crew, board
        self._last = Progress()
        self._error: KrabletError | None = None
        self._ended, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"pluck {job.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """By which the map is resumed, and by which workers join it."""
        return self.job.name

    @property
    def pids(self) -> list[int]:
        """The worker processes that were started here and are there."""
        return self._crew.pids

    def progress(self) -> Progress:
        """How far the map is now; rows and failures never go back."""
        self._last = later(self._last, counted(self.table, self.name))
        return self._last

    def wait(self, timeout_s: float | None = None) -> Mapped:
        """Wait for the end and return what was done since the map was first started.

        TimeoutError if it takes longer; `KrabletError` if the workers cannot go on. What was done stays done.
        """
        if not self._ended.wait(timeout_s):
            raise TimeoutError(f"the map {self.name!r} is not done after {timeout_s:g} s; it goes on")
        self._thread.join()
        if self._error is not None:
            raise self._error
        last = self.progress()
        return Mapped(rows=last.rows, failed=last.failed)

    def cancel(self) -> Mapped:
        """Stop all workers, wherever they are; a map of the same name and question goes on from here."""
        stop(self.table, self.name, "cancelled")
        self.close()
        last = self.progress()
        return Mapped(rows=last.rows, failed=last.failed)

    def close(self) -> None:
        """Stop the workers that were started here."""
        self._closing.set()
        self._ended.wait()
        self._thread.join()

    def results(self) -> Iterator[tuple[str, Result]]:
        """(id, result) of every row as pages are stored, since the map was first started, until the map ends."""
        places: dict[tuple[int, int], str | None] = {}
        while True:
            ended = self._ended.is_set()
            for number in range(len(self.table.dsns)):
                for span in self.table.guarded(number, lambda c, _: c.execute(_SPANS, (self.name,)).fetchall()):
                    yield from self._follow(number, span, places)
            if ended:
                return
            self._ended.wait(_LATER_S)

    def errors(self) -> list[Failure]:
        """The rows that the function failed for in this map, in order of id."""
        asked = (self.name, self.job.question.into)
        shards = range(len(self.table.dsns))
        lines = [
            line for n in shards for line in self.table.guarded(n, lambda c, _: c.execute(_ERRORS, asked).fetchall())
        ]
        found = [
            Failure(
                id=row_id, error=error.partition("\n")[0], traceback=error.partition("\n\n")[2], attempts=n, worker=by
            )
            for row_id, error, n, by in lines
        ]
        return sorted(found, key=lambda failure: failure.id)

    def __repr__(self) -> str:
        return plain_text(self.name, self._last)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": html_text(self.name, self._last)}

    def _follow(
        self, number: int, span: tuple[Any, ...], places: dict[tuple[int, int], str | None]
    ) -> Iterator[tuple[str, Result]]:
        """The results of a range from where it was read before, up to its cursor."""
        key, lower, cursor, upper, done, since = (number, span[0]), *span[1:]
        after, end = places.get(key, lower), upper if done else cursor
        while after is not None and (done or after < cursor):
            read = _results(self.job.question.into, after, end, since)
            lines = self.table.guarded(number, read)
            for row_id, value, dropped in lines:
                yield row_id, Result(value=value, drop=dropped)
            if len(lines) < _PAGE_ROWS:
                after = None if done else cursor
                break
            after = lines[-1][0]
        places[key] = after

    def _watch(self) -> None:
        """See to the workers until the map has ended."""
        pause_s = _SOON_S
        try:
            while not self._looked():
                self._crew.rest(pause_s, self._closing)
                pause_s = min(1.3 * pause_s, _LATER_S)
        except KrabletError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - `wait` raises it
            self._error = KrabletError(f"the map {self.name!r} cannot be watched: {error}")
            self._error.__cause__ = error
        finally:
            self._crew.stop()
            self._board.close(self.name, self._last, self._error)
            self._ended.set()

    def _looked(self) -> bool:
        """Whether the map has ended."""
        before = self._last
        last = self.progress()
        alive = self._crew.tend(moving=last != before)
        self._board.show(self.name, last)
        if last.state == "cancelled" or self._closing.is_set():
            return True
        if last.done and alive:
            return False
        if last.done:
            if not sweep(self.table, self.job):
                return True
            self._crew.again()  # slots moved after the last worker had looked
            return False
        if last.state == "failed" or (not alive and self._crew.problem):
            problem = self.progress().problem or self._crew.problem
            raise KrabletError(f"the map {self.name!r} stopped: {problem}\nWhat was done is stored.")
        return False


def later(before: Progress, now: Progress) -> Progress:
    """Of two counts the one that was made later: shards are asked one after the other, by several threads."""
    return replace(now, rows=max(before.rows, now.rows), failed=max(before.failed, now.failed))


def lost(table: Krablet, name: str) -> Callable[[str], None]:
    """What gives back the ranges of a worker that was killed."""

    def tell(worker: str) -> None:
        for number in range(len(table.dsns)):
            table.guarded(number, lambda c, _: give_back(c, name, worker, crashed=True))

    return tell


def _results(into: str, after: str, end: str | None, since: object) -> Callable[[Connection, Dag], list[Any]]:
    query = sql.SQL(_RESULTS).format(result(into), sql.SQL("" if end is None else "and i.id <= %(end)s"))
    given = {"after": after, "end": end, "since": since, "limit": _PAGE_ROWS}
    return lambda connection, _: connection.execute(query, given).fetchall()
