"""`map`: run a function over all rows that some tasks kept, every row once, from a script or a notebook.

It works through ranges of ids page by page. A page's results and the place behind it are stored in one transaction, so
a map that was stopped in any way goes on where it was when it is called again, and a page that was worked on twice
counts once. Rows that come in behind the cursor are left for the next map, which passes over rows that have a result.
"""

import multiprocessing
import os
import pickle
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from krea_data.checks import check_name, result_text
from krea_data.krablet import scan
from krea_data.krablet.answers import Answer
from krea_data.krablet.errors import KrabletError
from krea_data.krablet.span import Page, Span, advance, give_back, left, lend, plan
from krea_data.krablet.table import Krablet
from krea_data.rows import Result, Row

__all__ = ["Mapped", "map"]

_RANGES = 8  # per process, so that those who finish early find more to do
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """How many rows got a result from this call, and how many the function raised for (see `Krablet.dead`)."""

    rows: int = 0
    failed: int = 0

    def __add__(self, other: "Mapped") -> "Mapped":
        return Mapped(rows=self.rows + other.rows, failed=self.failed + other.failed)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """All that a worker needs to know."""

    fn: Callable[[Sequence[Row]], Sequence[Result]]
    dsns: tuple[str, ...]
    into: str
    kept_by: tuple[str, ...]
    batch: int
    lease_s: float

    @property
    def name(self) -> str:
        """The same for the same question, so that a call finds what an earlier one left unfinished."""
        return " ".join([self.into, *sorted(self.kept_by)])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Worker:
    name: str
    process: BaseProcess


def map(
    fn: Callable[[Sequence[Row]], Sequence[Result]],
    table: Krablet,
    *,
    into: str,
    kept_by: Sequence[str] = (),
    batch: int = 256,
    processes: int = 1,
    lease_s: float = 300.0,
    on_progress: Callable[[Mapped], None] | None = None,
) -> Mapped:
    """Call `fn` on pages of up to `batch` rows and store its results as those of the task `into`.

    Rows that have such a result are passed over. With several processes `fn` must be importable by
    them; one process means this one. A page must take less than `lease_s`. Where `fn` raises, the page is halved until
    the row at fault is alone; it is reported by `table.dead(into)`.
    """
    if batch < 1 or processes < 1:
        raise ValueError(f"batch {batch} and processes {processes} must be at least 1")
    job = _Job(
        fn=fn,
        dsns=table.dsns,
        into=check_name(into),
        kept_by=tuple(kept_by),
        batch=batch,
        lease_s=lease_s,
    )
    table.declare_results(into)
    shards = range(len(table.dsns))
    parts = max(1, processes * _RANGES // len(shards))
    for number in shards:
        table.guarded(number, lambda c, _: plan(c, job.name, parts))
    report = on_progress or (lambda _: None)
    if processes > 1:
        return _work_apart(job, table, processes, report)
    worker = uuid.uuid4().hex
    try:
        return _work(job, table, worker, report)
    finally:
        _give_back(job, table, worker)


def _work(job: _Job, table: Krablet, worker: str, report: Callable[[Mapped], None]) -> Mapped:
    """Work on ranges until all are done, by whomever."""
    total = Mapped()
    shards = range(len(table.dsns))
    while True:
        spans = [(n, table.guarded(n, lambda c, _: lend(c, job.name, worker, job.lease_s))) for n in shards]
        for number, span in spans:
            if span is not None:
                total += _walk(job, table, number, span, report)
        if all(span is None for _, span in spans):
            if not any(table.guarded(n, lambda c, _: left(c, job.name)) for n in shards):
                return total
            time.sleep(_POLL_S)


def _give_back(job: _Job, table: Krablet, worker: str) -> None:
    """Let others have the ranges of a worker that ends."""
    for number in range(len(table.dsns)):
        table.guarded(number, lambda c, _: give_back(c, job.name, worker))


def _walk(job: _Job, table: Krablet, number: int, span: Span, report: Callable[[Mapped], None]) -> Mapped:
    """Work through one range, page by page, until it ends or somebody else has it."""
    total, cursor = Mapped(), span.cursor
    slot = table.router.slot
    while cursor is not None:
        asked = {"after": cursor, "upper": span.upper, "limit": job.batch, "kept_by": job.kept_by, "without": job.into}
        rows = table.guarded(number, lambda c, d, a=asked: scan.page(c, d, **a))
        answers: list[Answer] = []
        failures: dict[tuple[int, str], str] = {}
        for row, found in _answers(job, rows):
            if isinstance(found, Result):
                answers.append(Answer(slot(row.id), row.id, result_text(found, job.into, row.id), found.drop))
            else:
                failures[slot(row.id), row.id] = found
        cursor = rows[-1].id if rows else None
        page = Page(cursor=cursor, into=job.into, answers=answers, failures=failures)
        if not table.guarded(number, lambda c, d, p=page: advance(c, d, job.name, span, p, job.lease_s)):
            return total
        step = Mapped(rows=len(answers), failed=len(failures))
        total += step
        if rows:
            report(step)
    return total


def _answers(job: _Job, rows: Sequence[Row]) -> list[tuple[Row, Result | str]]:
    """A result or an error for every row."""
    if not rows:
        return []
    try:
        results = job.fn(rows)
        if len(results) != len(rows):
            raise ValueError(f"the function gave {len(results)} results for {len(rows)} rows; give one for each row")
        for row, result in zip(rows, results, strict=True):
            result_text(result, job.into, row.id)
    except Exception as error:  # noqa: BLE001 - whatever the function raises is about its rows
        if len(rows) == 1:
            return [(rows[0], f"{type(error).__name__}: {error}"[:2000])]
        half = len(rows) // 2
        return _answers(job, rows[:half]) + _answers(job, rows[half:])
    return list(zip(rows, results, strict=True))


def _work_apart(job: _Job, table: Krablet, processes: int, report: Callable[[Mapped], None]) -> Mapped:
    """Let processes of their own do the work, and give back what a process held that died."""
    try:
        pickle.dumps(job.fn)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{job.fn!r} cannot be sent to other processes ({error});"
            " define it at the top of a module, or use processes=1"
        ) from error
    workers = dict(_start(job, number) for number in range(processes))
    total = Mapped()
    try:
        while workers:
            for pipe in wait(list(workers)):
                step = _heard(pipe, workers[pipe].process)
                if step is None:
                    del workers[pipe]
                else:
                    total += step
                    report(step)
    finally:
        for worker in workers.values():
            worker.process.terminate()
            worker.process.join()
            _give_back(job, table, worker.name)
    return total


def _start(job: _Job, number: int) -> tuple[Any, "_Worker"]:
    """Start a process; what it says comes out of the pipe."""
    context = multiprocessing.get_context("spawn")  # a fork would share our connections and threads
    ours, theirs = context.Pipe(duplex=False)
    name = f"{os.getpid()}-{number}-{uuid.uuid4().hex}"
    process = context.Process(target=_serve, args=(job, name, theirs), daemon=True)
    process.start()
    theirs.close()
    return ours, _Worker(name=name, process=process)


def _serve(job: _Job, worker: str, tell: Connection) -> None:
    """The work of one process."""
    try:
        with Krablet(job.dsns) as table:
            _work(job, table, worker, tell.send)
    except Exception:  # noqa: BLE001 - the parent raises it
        tell.send(traceback.format_exc())


def _heard(pipe: Any, process: BaseProcess) -> Mapped | None:
    """What a process has done, or None if it has ended as it should."""
    try:
        said = pipe.recv()
    except EOFError:
        process.join()
        if process.exitcode:
            raise KrabletError(
                f"a process of the map ended with {process.exitcode};"
                " what was done is stored, and the same call goes on"
            ) from None
        return None
    if isinstance(said, str):
        raise KrabletError(f"a process of the map failed; what was done is stored, and the same call goes on\n{said}")
    return said
