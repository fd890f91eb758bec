"""Every row exactly once, counted by the database itself, while rows come, change and go and processes are killed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from krea_data.krablet import Krablet, pluck
from krea_data.krablet.moves.move import add_shard, move, rebalance
from krea_data.krablet.pluck import handle
from krea_data.krablet.pluck.keys import make_key
from krea_data.krablet.pluck.maps import sweep
from krea_data.krablet.pluck.question import Job
from krea_data.rows import Row
from krea_data.testing import rows

pytestmark = pytest.mark.postgres
ROWS, BATCH = 400, 8
COUNTING = """
create table stored (id text);
create function count_stored() returns trigger language plpgsql as
  $$ begin insert into stored values (new.id); return null; end $$;
create trigger count_stored after insert or update on result_score for each row execute function count_stored();"""
DRIVER = """
import json, sys, time
from pathlib import Path
from krea_data.krablet import Krablet, pluck
given = json.loads(sys.argv[1])
def slow(rows):
    time.sleep(0.05)
    return [{"by": "first"} for _ in rows]
with Krablet(given["dsns"]) as table:
    images = pluck.Table("images", krablet=table, key_file=Path(given["key"]))
    images.map(slow, into="score", batch=8, workers=2, show=False).wait()
"""


@pytest.fixture
def table(new_dsns: Callable[[int], list[str]]) -> Iterator[Krablet]:
    with Krablet(new_dsns(2), patience_s=20.0) as table:
        table.add(rows(ROWS))
        table.declare_results("score")
        for number in range(2):
            table.guarded(number, lambda c, _: c.execute(COUNTING))
        yield table


def stored(table: Krablet) -> Counter[str]:
    """How often each row's result was written and committed."""
    shards = range(len(table.dsns))
    return Counter(
        row_id for n in shards for (row_id,) in table.guarded(n, lambda c, _: c.execute("select id from stored"))
    )


class Churn(threading.Thread):
    """Adds rows, changes rows and deletes some that it may, until it is stopped."""

    def __init__(self, table: Krablet, seed: int) -> None:
        super().__init__(daemon=True)
        self.table, self.random, self.ended = table, random.Random(seed), threading.Event()
        self.deleted: set[str] = set()
        self.rounds = 0

    def run(self) -> None:
        while not self.ended.wait(0.005):
            self.rounds += 1
            number = self.random.randrange(ROWS)
            row_id = f"synthetic/{number:05d}"
            if self.rounds % 3 == 0:
                self.table.add([Row(id=f"synthetic/{number:05d}x{self.rounds}", blob="0")])
            elif self.rounds % 3 == 1:
                self._do("update images set meta = meta || '{\"n\": 1}' where id = %s", row_id)
            elif number % 10 == 9:
                self._do("delete from images where id = %s", row_id)
                self.deleted.add(row_id)

    def _do(self, statement: str, row_id: str) -> None:
        number = self.table.router.shard(row_id)
        self.table.guarded(number, lambda c, _: c.execute(statement.encode(), (row_id,)))


def check_churned(table: Krablet, tmp_path: Path, seed: int) -> None:
    """A map with three workers, of which some are killed at random moments."""
    log = tmp_path / "calls"
    draw = random.Random(seed)

    def noting(rows: Sequence[Row]) -> list[dict[str, int]]:
        with log.open("a") as file:
            file.write("".join(f"{row.id}\n" for row in rows))
        time.sleep(0.01)
        return [{} for _ in rows]

    churn = Churn(table, seed)
    churn.start()
    images = pluck.Table("images", krablet=table, key_file=make_key(tmp_path / "key"))
    kills = 0
    with images.map(noting, into="score", batch=BATCH, workers=3, show=False) as map:
        while kills < 5 and not map.progress().done:
            time.sleep(draw.uniform(0.05, 0.4))
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(draw.choice(map.pids), signal.SIGKILL)
                kills += 1
        done = map.wait(100)
    churn.ended.set()
    churn.join()
    found = stored(table)
    stable = {row.id for row in rows(ROWS)} - churn.deleted
    assert set(found.values()) == {1}
    assert stable <= found.keys()
    assert done.failed == 0
    assert done.rows >= found.total()  # a row may be deleted after it was read
    assert churn.rounds > 10
    calls = Counter(log.read_text().split())
    assert sum(calls[row_id] - 1 for row_id in stable) <= BATCH * kills  # at most the page that was under way


@pytest.mark.parametrize("seed", [1, 2])
def test_exactly_once_under_churn_and_kills(table: Krablet, tmp_path: Path, seed: int) -> None:
    check_churned(table, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 30))
def test_exactly_once_under_churn_and_kills_many_times(table: Krablet, tmp_path: Path, seed: int) -> None:
    check_churned(table, tmp_path, seed)


def test_a_map_whose_caller_was_killed_is_resumed(table: Krablet, tmp_path: Path) -> None:
    key_file = make_key(tmp_path / "key")
    arguments = json.dumps({"dsns": list(table.dsns), "key": str(key_file)})
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, arguments])
    while not stored(table) and driver.poll() is None:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    images = pluck.Table("images", krablet=table, key_file=key_file)
    with images.map(lambda rows: [{"by": "second"} for _ in rows], into="score", batch=8, workers=2) as map:
        assert map.wait(60) == pluck.Mapped(rows=ROWS)
    found = stored(table)
    assert len(found) == ROWS
    assert set(found.values()) == {1}
    by = Counter(row.results["score"].value["by"] for row in table.scan(kept_by=["score"]))
    assert by["first"] > 0
    assert by["second"] > 0


def test_two_callers_share_one_map(table: Krablet, tmp_path: Path) -> None:
    images = pluck.Table("images", krablet=table, key_file=make_key(tmp_path / "key"))

    def slow(rows: Sequence[Row]) -> list[dict[str, int]]:
        time.sleep(0.02)
        return [{} for _ in rows]

    with images.map(slow, into="score", batch=8, workers=1) as one, images.map(slow, into="score", workers=1) as two:
        assert one.name == two.name
        assert one.wait(60) == two.wait(60) == pluck.Mapped(rows=ROWS)
    assert set(stored(table).values()) == {1}


def test_slots_that_move_when_the_last_worker_has_gone(
    new_dsns: Callable[[int], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's own look finds rows that no worker saw, and there must be workers for them again."""
    looks: list[bool] = []

    def late(table: Krablet, job: Job) -> bool:
        if not looks:
            table.add(rows(ROWS))
            move(table, table.router.held(0)[:1], 1)
        looks.append(sweep(table, job))
        return looks[-1]

    monkeypatch.setattr(handle, "sweep", late)
    with Krablet(new_dsns(2), patience_s=20.0, bits=2) as table:
        table.add(rows(ROWS // 2))
        images = pluck.Table("images", krablet=table, key_file=make_key(tmp_path / "key"))
        with images.map(lambda rows: [{} for _ in rows], into="score", workers=2, show=False) as map:
            map.wait(60)
        assert looks[0] is True
        assert table.stats()["score"].done == ROWS


def test_a_shard_that_is_added_meanwhile_is_mapped_too(new_dsns: Callable[[int], list[str]], tmp_path: Path) -> None:
    def slow(rows: Sequence[Row]) -> list[dict[str, int]]:
        time.sleep(0.03)
        return [{} for _ in rows]

    with Krablet(new_dsns(1), patience_s=20.0, bits=3) as table:
        table.add(rows(ROWS))
        images = pluck.Table("images", krablet=table, key_file=make_key(tmp_path / "key"))
        with images.map(slow, into="score", batch=BATCH, workers=2, show=False) as map:
            while map.progress().rows < ROWS // 4:
                time.sleep(0.02)
            add_shard(table, new_dsns(1)[0])
            assert rebalance(table) > 0
            done = map.wait(100)
        assert done.failed == 0
        assert table.stats()["score"].done == ROWS
        assert len(list(table.scan(kept_by=["score"]))) == ROWS
