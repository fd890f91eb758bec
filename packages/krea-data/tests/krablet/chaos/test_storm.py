"""Everything at once on two servers, whatever dies: workers, funnels, readers, servers, and who moves slots.

CHAOS_SECONDS says for how long the slow test does so, CHAOS_SEED in which order.
"""

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from krea_data.krablet import Krablet, up
from krea_data.krablet.funnels.client import FunnelClient
from krea_data.krablet.moves.move import resume

from .crew import Crew, wait_for
from .load import COUNTER, Load, watch_results
from .rampage import Rampage
from .test_kills import drain, judge
from .victims import TASKS

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]
_LOG = logging.getLogger(__name__)
SEED = int(os.environ.get("CHAOS_SEED", "2"))
VICTIMS = ["postmaster", "backend", "funnel-0", "funnel-1", "worker", "nobody", "remote", "reader", "mover"]


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a short path, which the servers' user may reach."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_two_minutes_of_chaos(root: Path) -> None:
    seconds = float(os.environ.get("CHAOS_SECONDS", "120"))
    with up(root / "cluster", 2) as cluster, Krablet(cluster.dsns, patience_s=120.0, bits=4) as krablet:
        dsns = list(cluster.dsns)
        krablet.register(TASKS)
        watch_results(dsns, [task.name for task in TASKS])
        with Crew(root) as crew, Load() as load:
            muster(crew, root, dsns)
            begin(load, krablet, root)
            ways = [(krablet.router.held(0)[:3], 1), (krablet.router.held(1)[-3:], 0)]
            crew.start("mover", "mover", ends=True, dsns=dsns, ways=ways, rest_s=0.05)
            rampage = Rampage(crew, cluster.root, 2, VICTIMS, SEED)
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                rampage.cycles(1, lambda: (crew.look_after(), load.look_after()), (0.2, 1.0))
            load.end(crew.look_after)
            wait_for(lambda: crew.look_after() or crew.ended("mover"), "the mover does not end")
            drain(krablet, crew)
            crew.finish("worker", "nobody", "remote")
            crew.finish()
            resume(krablet)
            assert [krablet.router.shards[slot] for slots, _ in ways for slot in slots] == [1] * 3 + [0] * 3
            judge(krablet, load)
            _LOG.info("%s; %s", dict(rampage.kills), load.summary())
            assert rampage.kills.keys() == set(VICTIMS)


def muster(crew: Crew, root: Path, dsns: list[str]) -> None:
    """Two funnels, a reader, and workers that reach the table in every way."""
    for number in (0, 1):
        crew.start(f"funnel-{number}", "funnel", dsns=dsns, address=f"unix:{root}/f{number}", spool=f"{root}/s{number}")
    crew.start("reader", "reader", dsns=dsns, address=f"unix:{root}/r")
    crew.start("worker", "worker", dsns=dsns, name="w")
    crew.start("nobody", "worker", dsns=dsns)
    for name in ("f0", "f1", "r"):
        wait_for(lambda path=root / name: path.is_socket(), f"{name} is not there")
    crew.start("remote", "worker", address=f"unix:{root}/r", name="far")


def begin(load: Load, krablet: Krablet, root: Path) -> None:
    """Rows, writes that are acknowledged in both ways, and reads."""
    with FunnelClient(f"unix:{root}/f0") as client:
        client.declare(COUNTER)
    for seed, (number, ack) in enumerate([(0, "committed"), (1, "committed"), (0, "journaled"), (1, "journaled")]):
        load.produce(f"unix:{root}/f{number}", seed, ack=ack)
    load.feed(krablet, "row")
    load.read(f"unix:{root}/r", SEED)
