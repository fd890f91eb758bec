"""kill -9 at random points: what was acknowledged is there, once, and every row gets its one answer.

CHAOS_CYCLES says how many kills the slow test makes, CHAOS_SEED which ones.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from krea_data.krablet import Krablet, up
from krea_data.krablet.checks.check import check
from krea_data.krablet.funnels.client import FunnelClient

from .crew import Crew, wait_for
from .load import COUNTER, Load, answers_given, counters, watch_results
from .rampage import Rampage
from .victims import TASKS

pytestmark = pytest.mark.postgres
_LOG = logging.getLogger(__name__)
SEED = int(os.environ.get("CHAOS_SEED", "1"))
VICTIMS = ["postmaster", "postmaster", "backend", "funnel", "funnel", "worker", "nobody", "reader"]


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a short path, which the servers' user may reach."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def run(root: Path, cycles: int) -> None:
    """All of it on one embedded server."""
    with up(root / "cluster", 1) as cluster, Krablet(cluster.dsns, patience_s=120.0) as krablet, Crew(root) as crew:
        dsns, funnel, reader = list(cluster.dsns), f"unix:{root}/f", f"unix:{root}/r"
        krablet.register(TASKS)
        watch_results(dsns, [task.name for task in TASKS])
        crew.start("funnel", "funnel", dsns=dsns, address=funnel)
        crew.start("reader", "reader", dsns=dsns, address=reader)
        crew.start("worker", "worker", dsns=dsns, name="w")
        crew.start("nobody", "worker", dsns=dsns)
        for name in ("f", "r"):
            wait_for((root / name).is_socket, f"{name} is not there")
        with FunnelClient(funnel) as client:
            client.declare(COUNTER)
        with Load() as load:
            for seed in range(3):
                load.produce(funnel, seed)
            load.feed(krablet, "row")
            load.read(reader, SEED)
            rampage = Rampage(crew, cluster.root, 1, VICTIMS, SEED)

            def watch() -> None:
                crew.look_after()
                load.look_after()

            rampage.cycles(cycles, watch)
            load.end(watch)
        drain(krablet, crew)
        crew.finish()
        judge(krablet, load)
        _LOG.info("%s; %s", dict(rampage.kills), load.summary())
        assert rampage.kills.total() == cycles
        assert load.acknowledged.total() > 10 * cycles


def drain(krablet: Krablet, crew: Crew) -> None:
    """Wait until every task has answered every row."""

    def done() -> bool:
        crew.look_after()
        return not any(krablet.pending(task.name) for task in TASKS)

    wait_for(done, "the queues do not drain")


def judge(krablet: Krablet, load: Load) -> None:
    """Nothing lost, nothing doubled, nothing left over."""
    assert counters(krablet.dsns) == dict(load.acknowledged)
    rows = set(load.added)
    assert {row.id for row in krablet.scan()} >= rows
    for task in TASKS:
        given = answers_given(krablet.dsns, task.name)
        assert given.keys() >= rows, "no job is lost"
        assert set(given.values()) == {1}, "no job has two answers"
        assert krablet.dead(task.name) == []
    broken = [finding for finding in check(krablet.dsns) if finding.level == "broken"]
    assert broken == []


def test_some_kills(root: Path) -> None:
    run(root, 8)


@pytest.mark.chaos
def test_two_hundred_kills(root: Path) -> None:
    run(root, int(os.environ.get("CHAOS_CYCLES", "200")))
