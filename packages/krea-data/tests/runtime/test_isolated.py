"""Rows that kill their task's process fail alone, and the worker and the other rows go on."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crashers import Deadly, DeadlyPicture, Environment, Slow, SlowPictures, Unloadable, Unpicklable
from krea_data.krablet import Krablet
from krea_data.memory import MemoryTable
from krea_data.rows import Result
from krea_data.runtime.cell import Cell, Died, StartError, TaskFailed
from krea_data.runtime.limits import Limits
from krea_data.testing import MemoryBlobs, rows
from krea_data.worker import run

POISON = "synthetic/00021"


def limits(**given: object) -> Limits:
    return Limits(isolated=True, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("deed", "says", "more"),
    [
        ("segfault", "its process was killed by SIGSEGV", {}),
        ("kill", "its process was killed by SIGKILL", {}),
        ("leave", "its process ended with code 3", {}),
        ("leave_politely", "SystemExit: enough", {}),
        ("hang", "its process took more than 0.5 s", {"timeout_s": 0.5}),
        ("spin", "its process took more than 0.5 s", {"timeout_s": 0.5}),
        ("swell", "its process ran out of memory", {"memory_bytes": 64 << 20}),
        ("babble", "gave an answer that is none", {}),
        ("close", "its process ", {}),
    ],
)
def test_a_row_that_kills_its_process_fails_alone(deed: str, says: str, more: dict) -> None:
    table = MemoryTable(rows(30), max_attempts=2, retry_s=0.001)
    task = Deadly(deed=deed, poison=frozenset({POISON}), **more)
    totals = run(table, [task], worker="w")
    assert (totals["fake"].kept, totals["fake"].failed, totals["fake"].lost) == (29, 2, 0)
    (dead,) = table.dead("fake")
    assert (dead.id, dead.attempts) == (POISON, 2)
    assert says in dead.error
    assert all(row.results["fake"].value["pid"] != os.getpid() for row in table.scan(kept_by=["fake"]))


@pytest.mark.postgres
def test_the_krablet_says_the_same(new_dsn: Callable[[], str]) -> None:
    with Krablet([new_dsn()], max_attempts=2, retry_s=0.001) as table:
        table.add(rows(30))
        totals = run(table, [Deadly(deed="segfault", poison=frozenset({POISON}))], worker="w", batch=30)
        assert (totals["fake"].kept, totals["fake"].failed) == (29, 2)
        assert [(one.id, one.error, one.attempts) for one in table.dead("fake")] == [
            (POISON, "its process was killed by SIGSEGV", 2)
        ]


def test_a_task_that_forks_answers_once_and_leaves_nobody_behind() -> None:
    table = MemoryTable(rows(30))
    totals = run(table, [Deadly(deed="fork", poison=frozenset({POISON}))], worker="w")
    assert totals["fake"].kept == 30
    (pid,) = {row.results["fake"].value["pid"] for row in table.scan()}
    gone(lambda: not in_group(pid))


def gone(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def in_group(group: int) -> list[int]:
    """Processes of this group that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, at = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(at) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def calls(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()]


@pytest.mark.parametrize("at_once", [False, True])
def test_the_blob_that_was_read_last_is_the_first_suspect(tmp_path: Path, at_once: bool) -> None:
    blobs = MemoryBlobs()
    table = MemoryTable(rows(64, blobs), max_attempts=1)
    victim = next(row for row in rows(64, blobs) if row.id == POISON)
    task = DeadlyPicture(
        blobs=blobs,
        deed="leave",
        poison=blobs.get(victim.blob),
        calls=str(tmp_path / "calls"),
        at_once=at_once,
    )
    totals = run(table, [task], worker="w")
    assert (totals["fake"].kept, totals["fake"].failed) == (63, 1)
    assert [one.id for one in table.dead("fake")] == [POISON]
    if at_once:  # a wrong suspect costs one call, and the batch is halved all the same
        assert len(calls(tmp_path / "calls")) <= 1 + 3 * 6
    else:
        assert calls(tmp_path / "calls") == [64, 1, 63]


def test_a_row_that_failed_before_goes_alone(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    table = MemoryTable(rows(8, blobs), max_attempts=3, retry_s=1e-9)
    victim = rows(8, blobs)[3]
    task = DeadlyPicture(blobs=blobs, deed="leave", poison=blobs.get(victim.blob), calls=str(tmp_path / "calls"))
    assert run(table, [task], worker="w")["fake"].kept == 7
    assert calls(tmp_path / "calls") == [8, 1, 7, 1, 1]


def test_one_process_serves_all_batches() -> None:
    table = MemoryTable(rows(40))
    run(table, [Deadly(deed="leave", poison=frozenset(), batch=5)], worker="w")
    assert len({row.results["fake"].value["pid"] for row in table.scan()}) == 1


def test_a_process_that_was_killed_between_batches_costs_nothing() -> None:
    table = MemoryTable(rows(2), max_attempts=1)
    cell = Cell(Deadly(deed="leave", poison=frozenset()), limits())
    one, two = (list(table.scan())[:1], list(table.scan())[1:])
    cell.answers(one, {})
    assert cell.pid is not None
    first = cell.pid
    os.kill(first, signal.SIGKILL)
    gone(lambda: not in_group(first))
    with pytest.raises(Died, match="SIGKILL"):
        cell.answers(two, {})
    assert cell.answers(two, {})[0].value["pid"] != first
    cell.close()
    assert cell.pid is None


def test_memory_is_counted_from_what_the_task_has_once_it_is_loaded() -> None:
    """A limit far below what the interpreter and its libraries reserve is enough for a task that needs little."""
    cell = Cell(Deadly(deed="swell", poison=frozenset({POISON})), limits(memory_bytes=16 << 20))
    given = rows(30)
    assert len(cell.answers(given[:20], {})) == 20
    with pytest.raises(Died, match="out of memory"):
        cell.answers(given[20:], {})
    cell.close()


def test_signs_of_life_give_a_slow_batch_its_time() -> None:
    """Ten blobs that take 0.2 s each are no reason to kill a process after 1 s, and a tenth that hangs is."""
    lives: list[float] = []
    cell = Cell(SlowPictures(), limits(timeout_s=1.0), lives.append)
    blobs = MemoryBlobs()
    some = rows(10, blobs)
    assert cell.answers(some, {row.blob: blobs.get(row.blob) for row in some}) == [Result()] * 10
    assert len(lives) > 5
    cell.close()


def test_what_was_read_ahead_is_all_that_a_process_needs() -> None:
    """The store that travels with the task is empty: the bytes come with the rows."""
    blobs = MemoryBlobs()
    some = rows(3, blobs)
    task = DeadlyPicture(blobs=MemoryBlobs(), deed="leave", poison=b"", calls=os.devnull)
    cell = Cell(task, limits())
    data = {row.blob: blobs.get(row.blob) for row in some}
    assert [one.value["bytes"] for one in cell.answers(some, data)] == [len(data[row.blob]) for row in some]
    with pytest.raises(TaskFailed, match="KeyError"):
        cell.answers(some, {})
    cell.close()


def test_a_task_that_cannot_travel_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match="task fake is isolated and cannot be sent to another process"):
        run(MemoryTable(rows(1)), [Unpicklable()], worker="w")


def test_a_process_that_cannot_start_is_no_fault_of_the_rows() -> None:
    table = MemoryTable(rows(5))
    with pytest.raises(StartError, match="task fake does not start in a process of its own"):
        run(table, [Unloadable()], worker="w")
    assert table.due("fake") == 5
    assert {claim.attempt for claim in table.claim(Slow(seconds=0), "w", 9, 9.0)} == {1}


def test_a_cell_has_no_secrets_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    cell = Cell(Environment(), limits())
    (answer,) = cell.answers(rows(1), {})
    assert "PATH" in answer.value["names"]
    assert not [name for name in answer.value["names"] if name.startswith("PG")]
    cell.close()
