"""Funnels that are killed, stopped and started again: nothing acknowledged is lost, nothing is stored twice."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from krea_data.krablet.funnels.client import FunnelClient
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.rpc import Remote

pytestmark = pytest.mark.postgres
COUNTER = Record("counter", (Column("n", "int", "add"), Column("top", "int", "max")))
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a funnel process and waits until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def run(**arguments: Any) -> "subprocess.Popen[str]":
        script = Path(__file__).with_name("funnels.py")
        process = subprocess.Popen([sys.executable, str(script), json.dumps(arguments)], stdout=-1, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def dsns(new_dsns: Callable[[int], list[str]]) -> list[str]:
    return new_dsns(2)


def total(dsns: list[str]) -> int:
    found = 0
    for dsn in dsns:
        with psycopg.connect(dsn) as connection:
            found += (connection.execute("select coalesce(sum(n), 0)::bigint from record_counter").fetchone() or (0,))[
                0
            ]
    return found


def test_sigterm_stores_what_was_taken(start: Start, dsns: list[str], tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/f"
    process = start(dsns=dsns, address=address)
    for ack in ("committed", "accepted"):
        with FunnelClient(address, ack=ack, batch_rows=50) as funnel:
            funnel.declare(COUNTER)
            counter = funnel.target("record:counter")
            acks = [counter.write(f"{ack}{n}", {"n": 1}) for n in range(2000)]
            if ack == "accepted":
                funnel.flush()
                process.send_signal(signal.SIGTERM)
            for each in acks:
                each.result(30)
    assert process.wait(30) == 0
    assert total(dsns) == 4000
    assert not (tmp_path / "f").exists()


def crash(start: Start, arguments: dict[str, Any], kills: int, ack: str, dsns: list[str]) -> int:
    """Write from threads while the funnel is killed again and again; return how many writes were acknowledged."""
    process = start(**arguments)
    draw, stop = random.Random(kills), threading.Event()
    acknowledged = [0] * 4

    def produce(number: int) -> None:
        mine = random.Random(number)
        with FunnelClient(arguments["address"], ack=ack, batch_rows=40, requests=3) as funnel:
            if not number:
                funnel.declare(COUNTER)
            counter = None
            while counter is None:
                try:
                    counter = funnel.target("record:counter")
                except LookupError:
                    time.sleep(0.05)
            while not stop.is_set():
                acks = [counter.write(f"k{mine.randrange(200)}", {"n": 1}) for _ in range(60)]
                for each in acks:
                    each.result(60)
                acknowledged[number] += len(acks)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(produce, number) for number in range(4)]
        for _ in range(kills):
            time.sleep(draw.uniform(0.05, 0.4))
            process.kill()
            process.wait()
            process = start(**arguments)
        time.sleep(0.3)
        stop.set()
        for future in futures:
            future.result(60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert total(dsns) == sum(acknowledged)
    return sum(acknowledged)


@pytest.mark.parametrize("ack", ["committed", "journaled"])
def test_a_funnel_that_is_killed_loses_and_doubles_nothing(
    start: Start, dsns: list[str], tmp_path: Path, ack: str
) -> None:
    arguments = {"dsns": dsns, "address": f"unix:{tmp_path}/f", "spool": str(tmp_path / "spool")}
    assert crash(start, arguments, 3, ack, dsns) > 100


@pytest.mark.slow
@pytest.mark.parametrize("ack", ["committed", "journaled"])
def test_many_kills(start: Start, dsns: list[str], tmp_path: Path, ack: str) -> None:
    arguments = {"dsns": dsns, "address": f"unix:{tmp_path}/f", "spool": str(tmp_path / "spool")}
    assert crash(start, arguments, 25, ack, dsns) > 1000


def test_the_spool_is_stored_before_anybody_may_write(start: Start, dsns: list[str], tmp_path: Path) -> None:
    arguments = {"dsns": dsns, "address": f"unix:{tmp_path}/f", "spool": str(tmp_path / "spool")}
    process = start(**arguments)
    with FunnelClient(arguments["address"]) as funnel:
        funnel.declare(COUNTER)
        funnel.target("record:counter").write("a", {"n": 1}).result(30)
    with psycopg.connect(dsns[0]) as holder, psycopg.connect(dsns[1]) as other:
        for connection in (holder, other):  # nothing can be stored now
            connection.execute("lock table record_counter in exclusive mode")
        with FunnelClient(arguments["address"], ack="journaled") as funnel:
            counter = funnel.target("record:counter")
            for n in range(100):
                counter.write(f"k{n % 10}", {"n": 1, "top": n}).result(30)
        assert (tmp_path / "spool").glob("*.seg")
        process.kill()
        process.wait()
    assert total(dsns) == 1
    start(**arguments)
    assert total(dsns) == 101
    with Remote(arguments["address"]) as raw:
        assert raw.call("status")["spool_bytes"] == 0


def test_a_client_that_gives_up_says_so(start: Start, dsns: list[str], tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/f"
    process = start(dsns=dsns, address=address)
    with FunnelClient(address, patience_s=0.2) as funnel:
        funnel.declare(COUNTER)
        counter = funnel.target("record:counter")
        counter.write("a", {"n": 1}).result(30)
        process.kill()
        process.wait()
        with pytest.raises(Exception, match=r"does not answer|was lost"):
            counter.write("a", {"n": 1}).result(60)
    assert total(dsns) in (1, 2)
