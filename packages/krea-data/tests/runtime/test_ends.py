"""Workers that are asked to end, told to end, or killed: rows come back, and at most one attempt is spent."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from crashers import Slow
from krea_data.krablet import Krablet
from krea_data.memory import MemoryTable
from krea_data.testing import rows
from krea_data.worker import run

Spawn = Callable[..., "Popen[str]"]


def heard(process: "Popen[str]") -> dict[str, Any]:
    """The next thing that the process says."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize("isolated", [False, True])
def test_sigterm_lets_the_batch_in_hand_be_finished(spawn: Spawn, isolated: bool) -> None:
    process = spawn("drain", isolated=isolated, seconds=0.3)
    heard(process)
    time.sleep(0.6 if isolated else 0)  # time to begin with a batch, which says nothing there
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    said = json.loads(out.splitlines()[-1])
    assert process.returncode == 0
    assert said["done"] % 10 == 0
    assert said["due"] == 100 - said["done"]
    assert said["attempts"] == [1]
    assert isolated or said["done"] == 10


@pytest.mark.parametrize("isolated", [False, True])
def test_a_second_sigterm_ends_at_once_and_gives_the_rows_back(spawn: Spawn, isolated: bool) -> None:
    process = spawn("drain", isolated=isolated, seconds=3600.0)
    heard(process)
    time.sleep(1 if isolated else 0)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(out.splitlines()[-1]) == {"done": 0, "due": 100, "attempts": [1]}


@pytest.mark.postgres
@pytest.mark.parametrize("isolated", [False, True])
def test_a_killed_worker_costs_its_rows_one_attempt(
    spawn: Spawn, new_dsn: Callable[[], str], isolated: bool, eventually: Callable[..., None]
) -> None:
    """It holds the batch in hand and the one ahead; both come back when the lease ends, and nothing else is touched."""
    task, dsn = Slow(seconds=0), new_dsn()
    with Krablet([dsn]) as table:
        table.add(rows(50))
        process = spawn("work", dsns=[dsn], worker="w", lease_s=2.0, seconds=3600.0, isolated=isolated)
        table.register([task])
        eventually(lambda: table.due("fake") == 30)
        eventually(lambda: not isolated or children(process.pid))
        held = children(process.pid)
        assert len(held) == isolated
        process.kill()
        process.wait()
        eventually(lambda: not [pid for pid in held if running(pid)])
        assert {claim.attempt for claim in table.claim(task, "other", 30, 1000.0)} == {1}
        eventually(lambda: table.due("fake") == 20)
        back = [claim for _ in range(20) for claim in table.claim(task, "other", 30, 1000.0)]
        assert [claim.attempt for claim in back] == [2] * 20


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("lease_s", [3.0, 6.0])
def test_rows_of_a_killed_worker_are_answered_soon_after_their_lease(
    spawn: Spawn, new_dsn: Callable[[], str], lease_s: float, eventually: Callable[..., None]
) -> None:
    """Its heartbeats make the lease short, so that the rows wait for that at most, and not for a batch's length."""
    dsn = new_dsn()
    with Krablet([dsn]) as table:
        table.add(rows(20))
        process = spawn("work", dsns=[dsn], worker="w", lease_s=lease_s, seconds=3600.0)
        heard(process)
        eventually(lambda: table.stats()["fake"].leased == 20)
        time.sleep(1.5 * lease_s)  # past the first lease
        assert table.due("fake") == 0
        process.kill()
        process.wait()
        start = time.monotonic()
        totals = run(table, [Slow(seconds=0, mark="other")], worker="other")
        assert totals["fake"].kept == 20
        assert time.monotonic() - start <= 1.2 * lease_s
        assert {row.results["fake"].value["by"] for row in table.scan()} == {"other"}


def test_a_batch_may_take_longer_than_its_lease() -> None:
    """Two workers, and batches of three leases each: the rows stay with whom they were given to."""
    table = MemoryTable(rows(20))
    task = Slow(seconds=3.0)
    totals: list[Any] = []
    workers = [
        threading.Thread(target=lambda n=name: totals.append(run(table, [task], worker=n, lease_s=1.0)))
        for name in "ab"
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(one["fake"].kept for one in totals) == 20
    assert sum(one["fake"].lost for one in totals) == 0


def test_rows_of_a_worker_that_is_stuck_go_to_others() -> None:
    """A heart that beats for a worker that hangs would keep its rows for ever."""
    table = MemoryTable(rows(10))
    stuck = threading.Event()

    class Stuck(Slow):
        def __call__(self, rows: Any) -> Any:
            stuck.wait(60)
            return Slow.__call__(self, rows)

    hanging = threading.Thread(
        target=run,
        args=(table, [Stuck(seconds=0)]),
        kwargs={"worker": "a", "lease_s": 0.5, "limits": {"fake": {"timeout_s": 0.5}}},
    )
    hanging.start()
    while table.due("fake") or not table.stats():
        time.sleep(0.01)
    assert run(table, [Slow(seconds=0)], worker="b")["fake"].kept == 10
    stuck.set()
    hanging.join()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
