import signal
import time
from collections.abc import Callable, Iterator
from subprocess import Popen
from typing import Any

import psycopg
import pytest
from krea_data.krablet import Krablet
from krea_data.krablet.dag import Dag
from krea_data.krablet.migrate import migrate, migrations
from krea_data.krablet.plans import aged
from krea_data.krablet.queues.claim import FRONT, Place, claim_statement
from krea_data.rows import Result, Stats
from krea_data.testing import FakeTask, rows
from psycopg import Connection

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


def test_claims_read_from_their_index_and_nothing_that_is_done(new_dsns: Callable[[int], list[str]]) -> None:
    """While somebody holds an old snapshot vacuum removes nothing; a claim must not read all that is done."""
    (dsn,) = new_dsns(1)
    task = FakeTask()
    with Krablet([dsn]) as krablet, psycopg.connect(dsn, autocommit=True) as free, psycopg.connect(dsn) as reader:
        krablet.register([task])
        krablet.add(rows(6000))
        free.execute("analyze")
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from images")
        before = plan(krablet, FRONT)
        while krablet.pending("fake") > 1000:
            claims = krablet.claim(task, "w", 100, 60.0)
            krablet.complete("fake", dict.fromkeys(claims, Result()))
        after = plan(krablet, krablet.floor(0, "fake").places[0])
        for found in (before, after):
            assert ("Index Scan", "queue_fake_by_time") in scans(found)
            assert not {name for kind, name in scans(found) if kind == "Seq Scan"} & {"queue_fake", "images"}
        assert blocks(after) < 1.5 * blocks(before)
        assert blocks(plan(krablet, FRONT)) > 2 * blocks(after)


def test_a_band_is_read_from_its_index(new_dsns: Callable[[int], list[str]]) -> None:
    with Krablet(new_dsns(1)) as krablet:
        krablet.register([FakeTask()])
        krablet.add(rows(3000))
        krablet.prioritise("fake", [row.id for row in rows(3000)][1000:2000], 2)
        krablet.guarded(0, lambda c, _: c.execute("analyze"))
        assert ("Index Scan", "queue_fake_by_band") in scans(plan(krablet, FRONT, band=2))


def plan(krablet: Krablet, place: Place, *, band: int = 0) -> dict[str, Any]:
    """What the server does for a claim of 50 rows from a place on, with what it took; then all is undone."""

    def explain(connection: Connection, dag: Dag) -> dict[str, Any]:
        statement = f"explain (analyze, buffers, format json) {claim_statement(dag, 'fake', band, 50)}"
        given = {"lease_s": 60.0, "max": 5, "worker": "w", "at": place[0], "n": place[1]}
        with connection.transaction(force_rollback=True):
            ((found,),) = connection.execute(statement.encode(), given).fetchall()
        return found[0]["Plan"]

    return krablet.guarded(0, explain)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a plan."""
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def scans(plan: dict[str, Any]) -> set[tuple[str, str]]:
    """How tables are read: kind of scan, and index or table."""
    found = [node for node in nodes(plan) if "Relation Name" in node]
    return {(node["Node Type"], node.get("Index Name", node["Relation Name"])) for node in found}


def blocks(plan: dict[str, Any]) -> int:
    """How many blocks it took to find the rows."""
    (due,) = [node for node in nodes(plan) if node.get("Subplan Name") == "CTE due"]
    return due["Shared Hit Blocks"] + due["Shared Read Blocks"]


def test_a_plan_is_made_anew_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [monkeypatch.setattr("time.monotonic", lambda s=s: s) or aged("select") for s in (1.0, 9.0, 11.0)]
    assert moments[0] == moments[1] != moments[2]


def test_rows_of_a_lost_lease_come_although_others_are_due(krablet: Krablet) -> None:
    """Their place is below the floor, and a claim that finds enough above it would not look there."""
    krablet.add(rows(200))
    task = FakeTask()
    lost = {claim.id for claim in krablet.claim(task, "gone", 10, 0.05)}
    again: set[str] = set()
    deadline = time.monotonic() + 30
    while not lost <= again and time.monotonic() < deadline:
        claims = krablet.claim(task, "w", 2, 60.0)
        again |= {claim.id for claim in claims if claim.attempt == 2}
        assert len(claims) == 2 or claims[0].attempt == 2
        krablet.add(rows(20, source=f"more{time.monotonic()}"))
        time.sleep(0.05)
    assert lost <= again


OLD_QUEUE = """
insert into task (name, queued) values ('fake', true);
create table queue_fake (
  slot int not null, id text collate "C" not null, n bigint generated always as identity,
  run_at timestamptz not null default now(), attempts smallint not null default 0, crashes smallint not null default 0,
  token bigint, worker text, error text, primary key (slot, id)
);
create index queue_fake_by_time on queue_fake (run_at, n);
insert into queue_fake (slot, id) values (1, 'due');
insert into queue_fake (slot, id, token, worker, attempts, run_at)
  values (1, 'held', 7, 'w', 1, now() + interval '1 h');
insert into queue_fake (slot, id, attempts, run_at) values (1, 'later', 1, now() + interval '1 h')"""


def test_leases_outlast_the_migration_of_their_queue(new_dsns: Callable[[int], list[str]]) -> None:
    with psycopg.connect(new_dsns(1)[0], autocommit=True) as connection:
        migrate(connection, [step for step in migrations() if step.number < 5])
        connection.execute(OLD_QUEUE)
        migrate(connection)
        found = connection.execute(
            "select id, run_at <= now(), held_until > now(), priority from queue_fake order by id"
        ).fetchall()
        assert found == [("due", True, False, 0), ("held", True, True, 0), ("later", False, False, 0)]
        indexes = "select indexdef from pg_indexes where schemaname = current_schema() and tablename = 'queue_fake'"
        assert sum(" WHERE (priority " in index for (index,) in connection.execute(indexes).fetchall()) == 2
