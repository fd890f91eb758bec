import signal
import time
from collections.abc import Callable
from subprocess import Popen

import psycopg
import pytest
from krea_data.krablet import Krablet
from krea_data.rows import Result, Stats
from krea_data.testing import FakeTask, rows

pytestmark = pytest.mark.postgres
Spawn = Callable[..., "Popen[str]"]


def test_processes_never_claim_the_same_row(krablet: Krablet, spawn: Spawn) -> None:
    krablet.add(rows(400))
    workers = [spawn("claim", dsns=krablet.dsns, worker=f"w{number}") for number in range(3)]
    claimed = [worker.communicate(timeout=120)[0].split() for worker in workers]
    assert sorted(row_id for ids in claimed for row_id in ids) == [row.id for row in rows(400)]


def test_a_killed_worker_costs_no_row_and_doubles_none(krablet: Krablet, spawn: Spawn) -> None:
    krablet.add(rows(300))
    workers = [spawn("work", dsns=krablet.dsns, worker=f"w{number}", lease_s=2.0) for number in range(2)]
    while krablet.stats().get("first", Stats()).done < 60:
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    assert workers[1].wait(120) == 0
    stats = krablet.stats()
    assert (stats["first"].kept, stats["late"].kept, stats["late"].queued, stats["late"].dead) == (300, 300, 0, 0)
    assert all(row.results.keys() == {"first", "late"} for row in krablet.scan())


def test_dead_entries_below_the_floor_are_not_walked_over(new_dsns: Callable[[int], list[str]]) -> None:
    """While somebody holds an old snapshot vacuum removes nothing; a claim must not read all that is done."""
    (dsn,) = new_dsns(1)
    task = FakeTask()
    with Krablet([dsn]) as krablet, psycopg.connect(dsn) as reader:
        krablet.add(rows(3000))
        krablet.register([task])
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from images")
        while krablet.due("fake") > 500:
            claims = krablet.claim(task, "w", 50, 60.0)
            krablet.complete("fake", dict.fromkeys(claims, Result()))
        floor = krablet._floors[0, "fake"]
        assert 3 * blocks_read(dsn, *floor.places[0]) < blocks_read(dsn, "-infinity", 0)


def blocks_read(dsn: str, at: object, n: int) -> int:
    """How many blocks it takes to find the first free row from here on."""
    statement = """
    explain (analyze, buffers, format json) select n from queue_fake
    where priority = 0 and run_at <= now() and (run_at, n) >= (%s::timestamptz, %s) order by run_at, n limit 1"""
    with psycopg.connect(dsn) as connection:
        connection.execute("set enable_seqscan = off")
        connection.execute("set enable_sort = off")
        ((plan,),) = connection.execute(statement, (at, n))
    return plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
