"""Claim rows, run a task on them, write its results, until nothing is left to do.

This is the whole of curation: every task in `krea_data.tasks` is run by this loop, any number of these loops work on
one table, and whichever of them dies, the table hands its rows to another. `krea_data.runtime` holds its parts.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from krea_data.checks import dag_order
from krea_data.interfaces import Task, WorkTable
from krea_data.rows import Claim, Result, Row
from krea_data.runtime.ahead import Ahead, Turn
from krea_data.runtime.answering import answers
from krea_data.runtime.cell import Died, StartError, TaskFailed
from krea_data.runtime.ending import draining
from krea_data.runtime.feed import Feed
from krea_data.runtime.here import Runner, runner
from krea_data.runtime.limits import Limits, limits_of
from krea_data.runtime.pulse import Pulse

__all__ = ["Limits", "Progress", "answers", "run", "work"]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.5  # for rows that are leased elsewhere or due later
_PATIENCE_S = 5.0  # at the end, with a claim that is under way
_ERROR_LETTERS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a task said of the rows of one batch, or of all its batches so far."""

    task: str
    kept: int = 0
    dropped: int = 0
    failed: int = 0  # attempts that raised or died; the rows are at the end of the queue, or dead
    lost: int = 0  # of kept and dropped: answers that came after the lease; somebody else has these rows
    seconds: float = 0.0

    def __add__(self, other: "Progress") -> "Progress":
        return Progress(
            task=self.task,
            kept=self.kept + other.kept,
            dropped=self.dropped + other.dropped,
            failed=self.failed + other.failed,
            lost=self.lost + other.lost,
            seconds=self.seconds + other.seconds,
        )


def run(
    table: WorkTable,
    tasks: Sequence[Task],
    *,
    worker: str,
    batch: int = 100,
    lease_s: float = 300.0,
    limits: Mapping[str, Mapping[str, Any]] | None = None,
    until_idle: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Progress]:
    """Work on all tasks in turn until none is pending (or for ever), and return the totals by task.

    `worker` is the name of this worker alone: leases that a former life under this name left behind are taken back.
    `limits`, such as {"decode": {"isolated": True}}, go before what a task declares itself (see `Limits`). Where the
    table can `extend` leases, they last as long as the work. `stop`, or SIGTERM in the main thread, ends the loop after
    the batch in hand, a second SIGTERM or Ctrl-C at once; `on_progress` is told every batch.
    """
    stop = stop or threading.Event()
    by_name = {task.name: task for task in tasks}
    order = dag_order({task.name: [name for name in task.after if name in by_name] for task in tasks})
    allowed = {name: limits_of(by_name[name], (limits or {}).get(name, {}), batch) for name in order}
    totals = {name: Progress(task=name) for name in order}
    table.register(tasks)
    table.release(worker, crashed=True)
    with draining(stop) as stopping, Pulse(getattr(table, "extend", None), lease_s) as pulse, ExitStack() as ending:
        runners = {name: runner(by_name[name], allowed[name], pulse.alive) for name in order}
        for one in runners.values():
            ending.callback(one.close)
        queue = [by_name[name] for name in order]
        ahead = Ahead(Feed(table, queue, allowed, pulse, worker=worker, lease_s=lease_s, stopping=stopping))
        ending.enter_context(_letting_go(table, worker, ahead))
        for turn in _turns(ahead, stopping, stop, lambda: not until_idle or any(map(table.pending, order))):
            step = _step(table, turn, runners[turn.task.name])
            pulse.drop(turn.hold)
            totals[step.task] += step
            if on_progress is not None:
                on_progress(step)
    return totals


def work(
    table: WorkTable,
    task: Task,
    claims: Sequence[Claim],
    answer: Callable[[Sequence[Row]], Sequence[Result]] | None = None,
) -> Progress:
    """Run the task on a claimed batch; where it raises, halve the batch until the row at fault is alone.

    With `answer` that is called in place of the task.
    """
    start = time.monotonic()
    try:
        rows = [claim.row for claim in claims]
        results = answers(task, rows) if answer is None else answer(rows)
    except StartError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a task raises is about its rows, and is written down with them
        if len(claims) > 1:
            return _in_parts(table, task, claims, answer, error.at if isinstance(error, Died) else None)
        table.fail(task.name, claims[0], _words(error))
        return Progress(task=task.name, failed=1, seconds=time.monotonic() - start)
    held = table.complete(task.name, dict(zip(claims, results, strict=True)))
    dropped = sum(result.drop is not None for result in results)
    return Progress(
        task=task.name,
        kept=len(claims) - dropped,
        dropped=dropped,
        lost=len(claims) - held,
        seconds=time.monotonic() - start,
    )


def _in_parts(
    table: WorkTable,
    task: Task,
    claims: Sequence[Claim],
    answer: Callable[[Sequence[Row]], Sequence[Result]] | None,
    suspect: int | None,
) -> Progress:
    """Work on a batch that failed: on the suspect alone, and on the rest, whole if it was the suspect, else halved."""
    done, rest = Progress(task=task.name), list(claims)
    if suspect is not None:
        done += work(table, task, [rest.pop(suspect)], answer)
    half = 0 if done.failed else len(rest) // 2
    for part in (rest[:half], rest[half:]):
        if part:
            done += work(table, task, part, answer)
    return done


def _words(error: Exception) -> str:
    said = str(error) if isinstance(error, Died | TaskFailed) else f"{type(error).__name__}: {error}"
    return said.replace("\0", "")[:_ERROR_LETTERS]


def _step(table: WorkTable, turn: Turn, runner: Runner) -> Progress:
    """Work on a batch. Rows that failed an isolated task before go alone, so that the others lose nothing by them."""
    alone = [claim for claim in turn.claims if turn.limits.isolated and claim.attempt > 1]
    rest = [claim for claim in turn.claims if not turn.limits.isolated or claim.attempt == 1]
    done = Progress(task=turn.task.name)
    for part in (*([claim] for claim in alone), rest):
        if part:
            done += work(table, turn.task, part, lambda rows: runner.answers(rows, turn.blobs))
    return done


def _turns(
    ahead: Ahead, stopping: Callable[[], bool], stop: threading.Event, more: Callable[[], bool]
) -> Iterator[Turn]:
    """Batch after batch, the next one being prepared meanwhile; waits where there is none and there will be `more`."""
    wait_s = 0.0
    while not stopping():
        turn = ahead.take(stopping)
        if turn is None:
            if not stopping() and not more():
                return
            wait_s = min(2 * wait_s + _FIRST_WAIT_S, _LONGEST_WAIT_S)
            stop.wait(wait_s)
        elif not stopping():
            wait_s = 0.0
            if turn.may_be_followed:
                ahead.start()
            yield turn


@contextmanager
def _letting_go(table: WorkTable, worker: str, ahead: Ahead) -> Iterator[None]:
    """At the end give back the rows that nobody has begun with, and after Ctrl-C those in hand."""
    try:
        yield
    except BaseException:
        ahead.end(_PATIENCE_S)
        with suppress(Exception):  # what went wrong first is what counts
            table.release(worker)
        raise
    ahead.end(_PATIENCE_S)
    table.release(worker)
