"""Processes that are killed are replaced, processes that give up are heard, and none outlives its pool."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from krea_curator import pool as pools
from krea_curator.pool import Pool, WorkerError, watch

UNTIL_END_OF_INPUT = "import sys; sys.stdin.read()"


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_pool_ends_when_its_workers_do(tmp_path: Path) -> None:
    looks = []
    with Pool(python("pass"), 2, tmp_path) as pool:
        assert watch(pool, lambda: len(looks.append(0) or looks))
    assert pool.restarts == 0
    assert looks


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    with Pool(python(UNTIL_END_OF_INPUT), 2, tmp_path) as pool:
        first = pool.pids
        os.kill(first[0], signal.SIGKILL)
        wait_for(lambda: pool.tend(0) and pool.restarts == 1)
        assert len(set(pool.pids) | set(first)) == 3
        pool.drain()
        wait_for(lambda: not pool.tend(0))


def test_workers_that_only_die_are_given_up(tmp_path: Path) -> None:
    with Pool(python("import os; os.kill(os.getpid(), 9)"), 2, tmp_path) as pool:
        with pytest.raises(WorkerError, match=r"20 workers in a row were killed \(signal 9\)"):
            wait_for(lambda: not pool.tend(0), 60)


def test_answered_rows_start_the_count_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_DEATHS", 2)
    marks = iter(range(1000))
    with Pool(python("import os; os.kill(os.getpid(), 9)"), 1, tmp_path) as pool:
        wait_for(lambda: pool.tend(next(marks)) and pool.restarts == 5)


def test_the_last_words_of_a_worker_that_gives_up_are_passed_on(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('noise\\nerror: the database is gone\\n'); sys.exit(1)"
    with Pool(python(code), 1, tmp_path) as pool:
        with pytest.raises(WorkerError, match=r"^the database is gone$"):
            watch(pool, lambda: 0)
    with Pool(python("import sys; sys.exit(3)"), 1, tmp_path / "silent") as pool:
        with pytest.raises(WorkerError, match="ended with code 3"):
            watch(pool, lambda: 0)


def test_ctrl_c_drains_and_twice_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    tend = Pool.tend
    rounds = iter(range(1000))

    def interrupted(self: Pool, mark: int) -> bool:
        if next(rounds) in (2, 5):
            raise KeyboardInterrupt
        return tend(self, mark)

    monkeypatch.setattr(Pool, "tend", interrupted)
    with Pool(python("import time; time.sleep(60)"), 1, tmp_path) as pool:
        assert not watch(pool, lambda: 0, lambda: events.append("drain"))
        assert pool.pids == []
    assert events == ["drain"]


def test_a_worker_that_ignores_everything_is_killed(tmp_path: Path) -> None:
    deaf = "import os, signal, time; signal.signal(2, signal.SIG_IGN); os.write(2, b'ready'); time.sleep(60)"
    pool = Pool(python(deaf), 1, tmp_path)
    wait_for(lambda: (tmp_path / "0.log").read_text() == "ready")
    pool.stop(patience_s=0.2)
    assert pool.pids == []


def test_workers_end_with_a_pool_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from krea_curator.pool import Pool\n"
        f"pool = Pool([{sys.executable!r}, '-S', '-c', {UNTIL_END_OF_INPUT!r}], 2, Path({str(tmp_path)!r}))\n"
        "print(*pool.pids, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not any(alive(pid) for pid in workers))


def alive(pid: int) -> bool:
    """Whether a process that is not our child runs; one that ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_no_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 workers"):
        Pool(["true"], 0, tmp_path)
