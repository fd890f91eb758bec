import threading
from collections.abc import Callable

import pytest
from krea_data.krablet import Krablet
from krea_data.krablet.queues import controls
from krea_data.krablet.queues.bands import bands_of
from krea_data.rows import Result
from krea_data.testing import FakeTask, rows

pytestmark = pytest.mark.postgres
New = Callable[[int], list[str]]
IDS = [row.id for row in rows(60)]


def test_a_pause_holds_for_other_processes_and_after_a_restart(new_dsns: New) -> None:
    dsns = new_dsns(2)
    with Krablet(dsns) as mine, Krablet(dsns) as other:
        mine.add(rows(30))
        assert other.claim(FakeTask(), "w", 1, 60.0)
        mine.pause("fake")
        assert other.claim(FakeTask(), "w", 1, 60.0) == []
    with Krablet(dsns) as again:
        assert again.claim(FakeTask(), "w", 100, 60.0) == []
        assert controls.paused(again, "fake") == [0, 1]
        again.register([FakeTask()])
        assert controls.paused(again, "fake") == [0, 1]
        again.resume("fake")
        assert len(again.claim(FakeTask(), "w", 100, 60.0)) == 29


def test_one_shard_can_be_paused_alone(krablet: Krablet) -> None:
    krablet.add(rows(30))
    krablet.register([FakeTask()])
    controls.pause(krablet, "fake", [1])
    claimed = krablet.claim(FakeTask(), "w", 100, 60.0)
    assert {krablet.router.shard(claim.id) for claim in claimed} == {0}
    assert controls.paused(krablet, "fake") == [1]
    controls.resume(krablet, "fake", [1])
    assert {krablet.router.shard(claim.id) for claim in krablet.claim(FakeTask(), "w", 100, 60.0)} == {1}
    with pytest.raises(ValueError, match="no shard 2"):
        controls.pause(krablet, "fake", [2])


def test_priorities_hold_for_other_processes(new_dsns: New) -> None:
    dsns = new_dsns(1)
    with Krablet(dsns) as mine, Krablet(dsns) as other:
        mine.add(rows(60))
        assert other.claim(FakeTask(), "w", 5, 60.0)
        mine.prioritise("fake", IDS[40:], 5)
        mine.prioritise("fake", IDS[10:20], -3)
        order = [claim.id for _ in range(11) for claim in other.claim(FakeTask(), "w", 5, 60.0)]
        assert set(order[:20]) == set(IDS[40:])
        assert set(order[20:45]) == set(IDS[5:10] + IDS[20:40])
        assert set(order[45:]) == set(IDS[10:20])


def test_a_source_can_be_raised_as_a_whole(new_dsns: New) -> None:
    with Krablet(new_dsns(2)) as krablet:
        krablet.add([*rows(20), *rows(20, source="urgent"), *rows(3, source="urgently")])
        krablet.register([FakeTask()])
        assert controls.prioritise_source(krablet, "fake", "urgent", 4) == 20
        assert controls.prioritise_source(krablet, "fake", "urgent", 4) == 0
        assert {c.id.split("/")[0] for c in krablet.claim(FakeTask(), "w", 20, 60.0)} == {"urgent"}
        assert len(krablet.claim(FakeTask(), "w", 100, 60.0)) == 23


def test_bands_are_forgotten_when_they_are_empty(new_dsns: New) -> None:
    def bands(krablet: Krablet) -> tuple[int, ...]:
        return krablet.guarded(0, lambda c, d: bands_of(d, "fake"))

    with Krablet(new_dsns(1)) as krablet:
        krablet.add(rows(4))
        krablet.register([FakeTask()])
        krablet.prioritise("fake", IDS[:2], 1)
        claims = krablet.claim(FakeTask(), "w", 2, 60.0)
        for _ in range(150):
            krablet.claim(FakeTask(), "w", 1, 60.0)
        assert bands(krablet) == (1, 0)  # the leased rows have it still
        krablet.complete("fake", dict.fromkeys(claims, Result()))
        for _ in range(150):
            krablet.claim(FakeTask(), "w", 1, 60.0)
        assert bands(krablet) == (0,)


def test_rows_are_raised_while_others_claim(new_dsns: New) -> None:
    """Nobody waits for ever, nothing is claimed twice, nothing is left behind in a band that was forgotten."""
    dsns = new_dsns(2)
    many = rows(400)
    ids = [row.id for row in many]
    claimed: list[str] = []

    def work() -> None:
        with Krablet(dsns) as table:
            while claims := table.claim(FakeTask(), threading.current_thread().name, 7, 600.0):
                table.complete("fake", dict.fromkeys(claims, Result()))
                claimed.extend(claim.id for claim in claims)

    with Krablet(dsns) as krablet:
        krablet.add(many)
        krablet.register([FakeTask()])
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(8):
            krablet.prioritise("fake", ids[turn::5], turn % 4 - 1)
        for thread in threads:
            thread.join()
        assert sorted(claimed) == ids
        assert krablet.pending("fake") == 0
