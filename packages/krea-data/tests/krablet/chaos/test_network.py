"""Bad lines between client and funnel, and between everybody and PostgreSQL: what is counted stays exact."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from krea_data.krablet import Krablet
from krea_data.krablet.connection import make_conninfo
from krea_data.krablet.funnels.client import FunnelClient
from psycopg.conninfo import conninfo_to_dict

from .crew import Crew, wait_for
from .load import COUNTER, Load, watch_results
from .proxy import FAULTS, Relay
from .test_kills import drain, judge
from .victims import TASKS

_LOG = logging.getLogger(__name__)
pytestmark = pytest.mark.postgres


@pytest.fixture
def through() -> Iterator[Callable[..., tuple[Relay, list[str]]]]:
    """A function that gives DSNs a relay in the middle."""
    with ExitStack() as ending:

        def make(dsns: list[str], folder: Path, seed: int) -> tuple[Relay, list[str]]:
            known = conninfo_to_dict(dsns[0])
            name = f".s.PGSQL.{known['port']}"
            relay = ending.enter_context(Relay(folder / name, Path(str(known["host"])) / name, seed, pieces=(20, 150)))
            return relay, [make_conninfo(dsn, host=str(folder)) for dsn in dsns]

        yield make


def run(dsns: list[str], through: Callable[..., tuple[Relay, list[str]]], folder: Path, seconds: float) -> None:
    """Everybody at work over bad lines for a while, then over good ones to the end."""
    relay, bad_dsns = through(dsns, folder, 1)
    inside, outside = folder / "inside", folder / "outside"
    with Krablet(dsns, patience_s=60.0) as krablet:
        krablet.register(TASKS)
        watch_results(dsns, [task.name for task in TASKS])
    with Krablet(bad_dsns, patience_s=60.0) as krablet, Crew(folder) as crew, Relay(outside, inside, 2) as line:
        crew.start("funnel", "funnel", dsns=bad_dsns, address=f"unix:{inside}")
        crew.start("worker", "worker", dsns=bad_dsns, name="w")
        crew.start("nobody", "worker", dsns=bad_dsns)
        wait_for(inside.is_socket, "the funnel is not there")
        with FunnelClient(f"unix:{inside}") as client:
            client.declare(COUNTER)
        with Load() as load:
            for seed in range(3):
                load.produce(f"unix:{outside}", seed)
            load.feed(krablet, "row")
            until = time.monotonic() + seconds
            while time.monotonic() < until or not line.met.keys() == relay.met.keys() == set(FAULTS):
                assert time.monotonic() < until + 60.0, (line.met, relay.met)
                time.sleep(0.1)
                crew.look_after()
                load.look_after()
            load.end(crew.look_after)
        relay.trouble = line.trouble = False
        drain(krablet, crew)
        crew.finish()
    with Krablet(dsns, patience_s=20.0) as krablet:
        judge(krablet, load)
    _LOG.info("%s; %s; %s", dict(line.met), dict(relay.met), load.summary())
    assert load.acknowledged.total() > 100


def test_bad_lines(
    new_dsns: Callable[[int], list[str]], through: Callable[..., tuple[Relay, list[str]]], tmp_path: Path
) -> None:
    run(new_dsns(1), through, tmp_path, 3.0)


@pytest.mark.chaos
def test_bad_lines_for_a_minute(
    new_dsns: Callable[[int], list[str]], through: Callable[..., tuple[Relay, list[str]]], tmp_path: Path
) -> None:
    run(new_dsns(2), through, tmp_path, 60.0)
