"""Claim rows, run a task on them, write its results, until nothing is left to do.

This is the whole of curation: every task in `krea_data.tasks` is run by this loop, any number of these loops work on
one table, and whichever of them dies, the table hands its rows to another.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from krea_data.checks import dag_order, result_text
from krea_data.interfaces import Task, WorkTable
from krea_data.rows import Claim, Result, Row

__all__ = ["Progress", "answers", "run", "work"]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.5  # for rows that are leased elsewhere or due later


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a task said of the rows of one batch, or of all its batches so far."""

    task: str
    kept: int = 0
    dropped: int = 0
    failed: int = 0  # attempts that raised; the rows are at the end of the queue, or dead
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
    until_idle: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Progress]:
    """Work on all tasks in turn until none is pending (or for ever), and return the totals by task.

    `worker` is the name of this worker alone: leases that a former life under this name left behind are taken back.
    `stop`, or SIGTERM in the main thread, ends the loop after the batch in hand; `on_progress` is told every batch.
    """
    stop = stop or threading.Event()
    by_name = {task.name: task for task in tasks}
    order = dag_order({task.name: [name for name in task.after if name in by_name] for task in tasks})
    totals = {name: Progress(task=name) for name in order}
    table.register(tasks)
    table.release(worker, crashed=True)
    wait_s = 0.0
    with _draining(stop) as stopping, _interruptible(table, worker):

        def turn(task: Task) -> Progress | None:
            claims = [] if stopping() else table.claim(task, worker, batch, lease_s)
            return work(table, task, claims) if claims else None

        while not stopping():
            steps = [step for name in order if (step := turn(by_name[name]))]
            for step in steps:
                totals[step.task] += step
                if on_progress is not None:
                    on_progress(step)
            if not steps and until_idle and not any(table.pending(name) for name in order):
                break
            wait_s = 0.0 if steps else min(2 * wait_s + _FIRST_WAIT_S, _LONGEST_WAIT_S)
            stop.wait(wait_s)
    return totals


def work(table: WorkTable, task: Task, claims: Sequence[Claim]) -> Progress:
    """Run the task on a claimed batch; where it raises, halve the batch until the row at fault is alone."""
    start = time.monotonic()
    try:
        results = answers(task, [claim.row for claim in claims])
    except Exception as error:  # noqa: BLE001 - whatever a task raises is about its rows, and is written down with them
        if len(claims) > 1:
            half = len(claims) // 2
            return work(table, task, claims[:half]) + work(table, task, claims[half:])
        table.fail(task.name, claims[0], f"{type(error).__name__}: {error}"[:2000])
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


def answers(task: Task, rows: Sequence[Row]) -> Sequence[Result]:
    """The task's results, or ValueError unless there is one for every row and all can be stored."""
    results = task(rows)
    if len(results) != len(rows):
        raise ValueError(f"task {task.name} gave {len(results)} results for {len(rows)} rows; give one for each row")
    for row, result in zip(rows, results, strict=True):
        result_text(result, task.name, row.id)
    return results


@contextmanager
def _draining(stop: threading.Event) -> Iterator[Callable[[], bool]]:
    """Let SIGTERM ask for the end. The handler takes no lock, since it runs in the middle of anything."""
    asked: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number)) if main else None
    try:
        yield lambda: bool(asked) or stop.is_set()
    finally:
        if main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def _interruptible(table: WorkTable, worker: str) -> Iterator[None]:
    """Give the rows in hand back at once when somebody presses Ctrl-C."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        table.release(worker)
        raise
