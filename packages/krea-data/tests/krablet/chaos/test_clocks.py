"""Workers whose clocks are wrong by an hour: leases are the server's affair."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from krea_data.krablet import Krablet
from krea_data.rows import Result
from krea_data.testing import FakeTask, rows

from .crew import Crew
from .load import answers_given, watch_results
from .test_kills import drain
from .victims import TASKS

pytestmark = pytest.mark.postgres
HOUR_S = 3600.0
TASK = FakeTask(name="first")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that puts this process's clock wrong by so many seconds."""
    real, real_ns = time.time, time.time_ns

    def skew(by_s: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + by_s)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(by_s * 1e9))

    return skew


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S])
def test_a_lease_lasts_as_long_as_the_server_says(
    krablet: Krablet, clock: Callable[[float], None], by_s: float
) -> None:
    krablet.add(rows(20))
    krablet.register([TASK])
    clock(by_s)
    held = krablet.claim(TASK, "early", 20, 1.5)
    assert len(held) == 20
    began = time.monotonic()
    clock(-by_s)
    assert krablet.claim(TASK, "late", 20, 60.0) == [], "the other clock is two hours away"
    taken = []
    while not taken:
        taken = krablet.claim(TASK, "late", 20, 60.0)
    assert time.monotonic() - began > 1.0, "not before the lease was over"
    assert krablet.complete("first", dict.fromkeys(held, Result())) == 20 - len(taken)
    assert krablet.complete("first", dict.fromkeys(taken, Result())) == len(taken)


def test_a_lease_that_a_wrong_clock_extends(krablet: Krablet, clock: Callable[[float], None]) -> None:
    krablet.add(rows(5))
    krablet.register([TASK])
    held = krablet.claim(TASK, "w", 5, 30.0)
    clock(-HOUR_S)
    assert krablet.extend("first", held, 30.0) == 5
    clock(HOUR_S)
    assert krablet.claim(TASK, "v", 5, 30.0) == []
    krablet.fail("first", held[0], "it breaks")
    clock(-HOUR_S)
    again = []
    while not again:  # after a moment of back-off, as measured by the server
        again = krablet.claim(TASK, "v", 5, 30.0)
    assert [claim.id for claim in again] == [held[0].id]


def test_workers_two_hours_apart_share_the_rows(new_dsns: Callable[[int], list[str]], tmp_path: Path) -> None:
    dsns = new_dsns(2)
    with Krablet(dsns, patience_s=20.0) as krablet, Crew(tmp_path) as crew:
        krablet.register(TASKS)
        watch_results(dsns, [task.name for task in TASKS])
        krablet.add(rows(400))
        for name, skew_s in (("ahead", HOUR_S), ("right", 0.0), ("behind", -HOUR_S)):
            crew.start(name, "worker", dsns=dsns, name=name, lease_s=20.0, skew_s=skew_s)
        drain(krablet, crew)
        crew.finish()
        for task in TASKS:
            given = answers_given(dsns, task.name)
            assert len(given) == 400
            assert set(given.values()) == {1}
            assert krablet.dead(task.name) == []
