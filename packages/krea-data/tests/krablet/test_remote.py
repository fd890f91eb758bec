"""The remote table does what every table does, with a real server on a unix socket in between."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from krea_data.contract import TableContract
from krea_data.krablet import Krablet
from krea_data.krablet.readers.remote import RemoteTable
from krea_data.krablet.rpc import Broken, Refused, Tokens
from krea_data.rows import Result, Row
from krea_data.testing import FakeTask, rows
from krea_data.worker import run

from .reading import a_reader
from .test_table import shift

pytestmark = pytest.mark.postgres


class TestRemoteTable(TableContract):
    @pytest.fixture
    def table(self, new_dsns: Callable[[int], list[str]], tmp_path: Path) -> Iterator[RemoteTable]:
        dsns = new_dsns(2)
        with a_reader(dsns, f"unix:{tmp_path}/s", max_attempts=4) as (reader, _):
            with RemoteTable(reader.address, patience_s=20.0) as table:
                table.krablet = reader.service.krablet  # type: ignore[attr-defined]
                yield table

    def elapse(self, table: Any, seconds: float) -> None:
        shift(table.krablet, seconds)


def test_a_worker_needs_no_dsn(krablet: Krablet, tmp_path: Path) -> None:
    krablet.add(rows(60))
    tokens = Tokens.load(tmp_path / "tokens.json")
    secret = tokens.add("worker", ["work"])
    with a_reader(krablet.dsns, f"unix:{tmp_path}/s", tokens) as (reader, _):
        with RemoteTable(reader.address, token=secret) as table:
            totals = run(table, [FakeTask(name="first"), FakeTask(name="late", after=("first",))], worker="w", batch=7)
            assert (totals["first"].kept, totals["late"].kept, totals["late"].lost) == (60, 60, 0)
            with pytest.raises(Refused, match="scope 'read'"):
                table.get("synthetic/00001")
            with pytest.raises(Refused, match="scope 'admin'"):
                table.pause("first")
    assert krablet.stats()["late"].kept == 60


def test_rows_come_by_id_and_by_filter(krablet: Krablet, tmp_path: Path) -> None:
    krablet.add(rows(30))
    with a_reader(krablet.dsns, f"unix:{tmp_path}/s") as (reader, _), RemoteTable(reader.address) as table:
        wanted = list(krablet.scan())
        assert table.get("synthetic/00003") == wanted[3]
        assert table.get("nobody") is None
        assert table.get_many(["synthetic/00003", "nobody", "synthetic/00001"]) == [wanted[1], wanted[3]]
        flat = {"field": "meta.style", "op": "eq", "value": "flat"}
        assert list(table.scan(where=flat, after="synthetic/00009")) == wanted[10::2]
        assert table.count(where=flat) == 15
        assert [shard["up"] for shard in table.status()["shards"]] == [True, True]


def test_a_claim_waits_for_its_rows(krablet: Krablet, tmp_path: Path) -> None:
    task = FakeTask()
    with a_reader(krablet.dsns, f"unix:{tmp_path}/s") as (reader, _):
        with RemoteTable(reader.address, wait_s=20.0) as waiting, RemoteTable(reader.address) as other:
            other.register([task])
            with ThreadPoolExecutor(4) as pool:
                claims = [pool.submit(waiting.claim, task, f"w{n}", 1, 1000.0) for n in range(4)]
                time.sleep(0.1)
                assert not any(claim.done() for claim in claims)
                assert other.claim(task, "v", 1, 1000.0) == []
                other.add(rows(4))
                found = [claim.result(20)[0].id for claim in claims]
            assert sorted(found) == [row.id for row in rows(4)]
        with RemoteTable(reader.address, wait_s=0.2) as waiting:
            assert waiting.claim(task, "w", 1, 1000.0) == []


def test_a_scan_and_a_worker_outlive_their_reader(krablet: Krablet, tmp_path: Path) -> None:
    krablet.add(rows(1000))
    address = f"unix:{tmp_path}/s"
    with a_reader(krablet.dsns, address) as (_, end), RemoteTable(address, patience_s=20.0) as table:
        stream = table.scan()
        found = [next(stream).id]
        totals: list[Any] = []
        worker = threading.Thread(
            target=lambda: totals.append(run(table, [FakeTask()], worker="w", batch=50)), daemon=True
        )
        worker.start()
        end()
        with a_reader(krablet.dsns, address):
            found += [row.id for row in stream]
            worker.join(60)
    assert found == [row.id for row in rows(1000)]
    assert krablet.stats()["fake"].kept == 1000
    assert totals


def test_nobody_there_is_said_after_a_while(tmp_path: Path) -> None:
    with pytest.raises(Broken, match="does not answer"):
        RemoteTable(f"unix:{tmp_path}/nobody", patience_s=0.1)


def test_work_in_parts(krablet: Krablet, tmp_path: Path) -> None:
    many = [Row(id=f"{n:05d}", blob="", meta={"text": "x" * 5000}) for n in range(2500)]
    with a_reader(krablet.dsns, f"unix:{tmp_path}/s") as (reader, _), RemoteTable(reader.address) as table:
        assert table.add(iter(many)) == 2500
        with pytest.raises(ValueError, match="nobody"):
            table.put("first", {"nobody": Result(), **{row.id: Result() for row in many}})
        assert sum(1 for _ in table.scan(kept_by=["first"])) == 2500
        assert len(table.get_many([row.id for row in many])) == 2500


@pytest.fixture
def process(krablet: Krablet, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A reader in a process of its own, which listens."""
    script = str(Path(__file__).with_name("reading.py"))
    command = [sys.executable, script, f"unix:{tmp_path}/s", *krablet.dsns]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == f"unix:{tmp_path}/s"
    yield process
    process.kill()
    process.communicate()


def test_sigterm_lets_calls_end(process: "subprocess.Popen[str]", tmp_path: Path) -> None:
    with RemoteTable(f"unix:{tmp_path}/s", wait_s=1.0, patience_s=0.2) as table:
        table.register([FakeTask(name="empty", after=("never",))])
        with ThreadPoolExecutor(1) as pool:
            claim = pool.submit(table.claim, FakeTask(name="empty", after=("never",)), "w", 1, 10.0)
            time.sleep(0.3)
            process.terminate()
            assert claim.result(20) == []  # it was in the middle of its wait
        assert process.wait(20) == 0
        assert not (tmp_path / "s").exists()
        with pytest.raises(Broken):
            table.get("a")
