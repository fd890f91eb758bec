import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest
from krea_data.memory import MemoryTable
from krea_data.rows import Claim, Result, Row
from krea_data.testing import CrashingTask, FakeTask, rows
from krea_data.worker import Progress, run


class Recording:
    """A task that notes its batches."""

    name, after = "fake", ()

    def __init__(self, poison: Sequence[str] = ()) -> None:
        self.batches: list[list[str]] = []
        self.poison = poison

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        self.batches.append([row.id for row in rows])
        if any(row.id in self.poison for row in rows):
            raise RuntimeError("poison")
        return [Result() for _ in rows]


def test_run_ends_when_nothing_is_left() -> None:
    table = MemoryTable(rows(25))
    first = FakeTask(name="first", answer=lambda row: Result(drop="odd" if row.id[-1] in "13579" else None))
    late = FakeTask(name="late", after=("first",))
    seen: list[Progress] = []
    totals = run(table, [late, first], worker="w", batch=10, on_progress=seen.append)
    assert (totals["first"].kept, totals["first"].dropped) == (13, 12)
    assert (totals["late"].kept, totals["late"].dropped) == (13, 0)
    assert sum(step.kept + step.dropped for step in seen) == 38
    assert list(totals) == ["first", "late"]


def test_a_raising_batch_is_halved_to_the_row_at_fault() -> None:
    table = MemoryTable(rows(64), max_attempts=1)
    task = Recording(poison=["synthetic/00040"])
    totals = run(table, [task], worker="w", batch=64)
    assert (totals["fake"].kept, totals["fake"].failed) == (63, 1)
    assert len(task.batches) == 13  # 1 + 2 for each of six halvings
    assert [dead.id for dead in table.dead("fake")] == ["synthetic/00040"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda rows: [], "gave 0 results for 1 rows"),
        (lambda rows: ["text"] * len(rows), "return a krea_data Result"),
        (lambda rows: [Result(value={"x": float("nan")})] * len(rows), "cannot be stored as JSON"),
    ],
)
def test_a_wrong_answer_is_an_error_of_the_row(answer, words: str) -> None:
    class Wrong(FakeTask):
        def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
            return answer(rows)

    table = MemoryTable(rows(3), max_attempts=1)
    run(table, [Wrong()], worker="w")
    assert len(table.dead("fake")) == 3
    assert words in table.dead("fake")[0].error


def test_a_value_of_the_wrong_type_is_an_error_of_its_row() -> None:
    class Typed(FakeTask):
        columns: ClassVar = {"score": float}

        def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
            return [Result(value={"score": "high" if row.id == "synthetic/00001" else 0.5}) for row in rows]

    table = MemoryTable(rows(4), max_attempts=1)
    assert run(table, [Typed()], worker="w")["fake"].kept == 3
    assert [(dead.id, "score" in dead.error) for dead in table.dead("fake")] == [("synthetic/00001", True)]


def test_a_failing_table_gets_back_what_nobody_works_on() -> None:
    class Broken(MemoryTable):
        def complete(self, task: str, results: Mapping[Claim, Result]) -> int:
            raise ConnectionError("gone")

    table = Broken(rows(30))
    with pytest.raises(ConnectionError):
        run(table, [FakeTask()], worker="w", batch=10)
    assert table.due("fake") == 30


def test_answers_after_the_lease_are_counted_as_lost() -> None:
    now_s = [0.0]
    table = MemoryTable(rows(2), clock=lambda: now_s[0])

    class Slow(FakeTask):
        def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
            if now_s[0] == 0.0:
                now_s[0] = 100.0
                run(table, [FakeTask()], worker="other", lease_s=10.0)
            return [Result(value={"late": True}) for _ in rows]

    totals = run(table, [Slow()], worker="w", lease_s=10.0)
    assert totals["fake"].lost == 2
    assert all("seen" in row.results["fake"].value for row in table.scan())


def test_sigterm_ends_after_the_batch_in_hand() -> None:
    table = MemoryTable(rows(30))

    class Stopping(FakeTask):
        def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
            os.kill(os.getpid(), signal.SIGTERM)
            return [Result() for _ in rows]

    before = signal.getsignal(signal.SIGTERM)
    totals = run(table, [Stopping()], worker="w", batch=10, until_idle=False)
    assert signal.getsignal(signal.SIGTERM) is before
    assert totals["fake"].kept == 10
    assert (table.pending("fake"), table.due("fake")) == (20, 20)


def test_stop_ends_a_worker_that_waits() -> None:
    stop = threading.Event()
    table = MemoryTable(rows(5))
    worker = threading.Thread(
        target=run, args=(table, [FakeTask()]), kwargs={"worker": "w", "until_idle": False, "stop": stop}
    )
    worker.start()
    while table.pending("fake") or not table.stats():
        pass
    stop.set()
    worker.join(10)
    assert not worker.is_alive()


def test_ctrl_c_gives_the_rows_back() -> None:
    table = MemoryTable(rows(5))

    class Interrupted(FakeTask):
        def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(table, [Interrupted()], worker="w")
    assert table.due("fake") == 5
    assert {claim.attempt for claim in table.claim(FakeTask(), "w", 9, 9.0)} == {1}


def test_a_worker_takes_back_what_its_former_life_held() -> None:
    table = MemoryTable(rows(8))
    table.claim(FakeTask(), "w", 8, 1e6)
    assert run(table, [FakeTask()], worker="w")["fake"].kept == 8


def test_workers_in_threads_share_the_work() -> None:
    table = MemoryTable(rows(200))
    tasks = [FakeTask(), CrashingTask(name="late", after=("fake",), poison=frozenset({"synthetic/00077"}))]
    threads = [threading.Thread(target=run, args=(table, tasks), kwargs={"worker": name, "batch": 9}) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = table.stats()
    assert (stats["fake"].done, stats["late"].done, stats["late"].dead) == (200, 199, 1)
