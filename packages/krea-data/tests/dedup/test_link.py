"""The whole way: workers run the task, slots move meanwhile, a dump comes back, and the outcome stays the same."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from krea_data.dedup import Index, Limits, Link, explain, repair
from krea_data.dedup.codes import codes_of
from krea_data.krablet import Krablet
from krea_data.krablet.checks.check import check
from krea_data.krablet.dumps.backup import dump
from krea_data.krablet.dumps.restore import restore
from krea_data.krablet.moves.move import add_shard, move, rebalance
from krea_data.rows import Result, Row
from krea_data.tasks import Dedup
from krea_data.worker import run

pytestmark = pytest.mark.postgres
STAGE = {"dedup": Limits()}


@dataclass(frozen=True)
class Given:
    """A task whose results are known."""

    name: str
    results: dict[str, Result]
    after: tuple[str, ...] = ()

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        return [self.results[row.id] for row in rows]


def given(rows: Sequence[Row]) -> list[Given]:
    decoded, hashed = ({row.id: row.results[name] for row in rows} for name in ("decode", "hash"))
    return [Given("decode", decoded), Given("hash", hashed, ("decode",))]


def linked(krablet: Krablet) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for dsn in krablet.dsns:
        with psycopg.connect(dsn) as connection:
            found |= set(connection.execute("select id, other from dedup_link").fetchall())
    return found


def results(krablet: Krablet) -> dict[str, Result]:
    return {row.id: row.results["dedup"] for row in krablet.scan() if "dedup" in row.results}


def test_workers_link_rows_side_by_side(krablet: Krablet, many: Callable, bare: Callable) -> None:
    rows = many(3, 150)
    krablet.add(bare(rows))
    index = Index(krablet, STAGE)
    tasks = [*given(rows), Link(index=index)]
    workers = [
        threading.Thread(target=run, args=(krablet, tasks), kwargs={"worker": name, "batch": 16, "until_idle": True})
        for name in ("one", "two")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    repair(index, "dedup")
    assert results(krablet) == Dedup().compare(rows)
    linked = {row.id: row.results["link"].value["links"] for row in krablet.scan()}
    assert set(linked) == {row.id for row in rows}
    assert krablet.columns("link") == {"links": "int"}


_VICTIM = """
import json, sys
from krea_data.dedup import Index, Limits, Link
from krea_data.krablet import Krablet
from krea_data.worker import run
with Krablet(json.loads(sys.argv[1]), patience_s=20.0) as krablet:
    link = Link(index=Index(krablet, {"dedup": Limits()}))
    run(krablet, [link], worker=sys.argv[2], batch=3, lease_s=600.0, until_idle=True)
"""


def test_workers_that_are_killed_leave_nothing_undone(krablet: Krablet, many: Callable, bare: Callable) -> None:
    rows = many(13, 300)
    krablet.add(bare(rows))
    for name in ("decode", "hash"):
        krablet.put(name, {row.id: row.results[name] for row in rows})
    index = Index(krablet, STAGE)
    krablet.register([Link(index=index)])
    for number in range(3):
        before = krablet.pending("link")
        command = [sys.executable, "-c", _VICTIM, json.dumps(krablet.dsns), f"victim-{number}"]
        with subprocess.Popen(command) as victim:
            while krablet.pending("link") > before - 20 and victim.poll() is None:
                time.sleep(0.01)
            victim.kill()
        repair(index, "dedup")
    assert 0 < krablet.pending("link") < len(rows), "the victims were killed in the middle of it"
    for number in range(3):
        krablet.release(f"victim-{number}", crashed=True)
    run(krablet, [Link(index=index)], worker="last", until_idle=True)
    repair(index, "dedup")
    assert results(krablet) == Dedup().compare(rows)
    assert krablet.stats()["link"].done == len(rows)


def test_slots_that_move_lose_no_link(krablet: Krablet, new_dsns: Callable, many: Callable, bare: Callable) -> None:
    rows = many(6, 200)
    krablet.add(bare(rows))
    index = Index(krablet, STAGE)
    to = add_shard(krablet, new_dsns(1)[0])
    moved = threading.Thread(target=lambda: move(krablet, range(0, 16, 2), to))
    moved.start()
    for start in range(0, len(rows), 5):
        index.take(rows[start : start + 5])
        if start == 100:
            repair(index, "dedup")
    moved.join()
    repair(index, "dedup")
    assert results(krablet) == Dedup().compare(rows)
    rebalance(krablet)
    with Krablet(krablet.dsns, patience_s=20.0) as again:
        index = Index(again, STAGE)
        assert sum(index.take(rows)) == 0, "all were known"
        found = index.near(codes_of(rows))
        assert {(left, right) for left, right, *_ in found} == linked(again)
    assert [finding for finding in check(krablet.dsns) if finding.level == "broken"] == []


def test_a_dump_comes_back_on_other_shards(
    krablet: Krablet, new_dsns: Callable, many: Callable, bare: Callable, tmp_path: Path
) -> None:
    rows = many(8, 120)
    krablet.add(bare(rows))
    index = Index(krablet, STAGE)
    index.take(rows[:90])
    repair(index, "dedup")
    index.take(rows[90:100])
    dump(krablet, tmp_path / "dump")
    with Krablet(new_dsns(3), patience_s=20.0, bits=4) as again:
        restore(tmp_path / "dump", again)
        there = Index(again, STAGE)
        there.take(rows[100:])
        repair(there, "dedup")
        assert results(again) == Dedup().compare(rows)
        lost = next(row_id for row_id, result in results(again).items() if result.drop == "near duplicate")
        assert explain(there, "dedup", lost).chain
        assert [finding for finding in check(again.dsns) if finding.level == "broken"] == []
