"""Limits, reading ahead, the batch ahead, and the pulse, each by itself."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from krea_data.interfaces import Blobs
from krea_data.memory import MemoryTable
from krea_data.rows import Claim, Result, Row
from krea_data.runtime.ahead import Ahead, Turn
from krea_data.runtime.given import Given, read_ahead
from krea_data.runtime.limits import Limits, limits_of
from krea_data.runtime.pulse import Pulse
from krea_data.tasks import Decode
from krea_data.testing import FakeTask, MemoryBlobs, rows
from krea_data.worker import run


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared(FakeTask):
    batch: Any = 7
    timeout_s: Any = 3


def test_what_is_given_goes_before_what_a_task_declares() -> None:
    assert limits_of(FakeTask(), {}, 50) == Limits(batch=50)
    assert limits_of(Declared(), {}, 50) == Limits(batch=7, timeout_s=3)
    assert limits_of(Declared(), {"batch": 9, "isolated": True}, 50) == Limits(batch=9, timeout_s=3, isolated=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch": 0}, "batch is 0; use a whole number of 1 or more"),
        ({"batch": 2.5}, "batch is 2.5"),
        ({"batch": True}, "batch is True"),
        ({"prefetch_bytes": -1}, "prefetch_bytes is -1"),
        ({"memory_bytes": 0}, "memory_bytes is 0"),
        ({"isolated": "yes"}, "isolated is 'yes'; use True or False"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"retries": 3}, "is given retries; the limits are batch, prefetch_bytes, isolated, memory_bytes, timeout_s"),
    ],
)
def test_what_is_no_limit_is_named(given: dict, says: str) -> None:
    with pytest.raises(ValueError, match=r"^task fake .*") as caught:
        limits_of(FakeTask(), given, 100)
    assert says in str(caught.value)


def test_batches_are_as_large_as_each_task_wants_them() -> None:
    sizes: dict[str, list[int]] = {"fake": [], "late": []}

    class Counted(Declared):
        def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
            sizes[self.name].append(len(rows))
            return Declared.__call__(self, rows)

    run(MemoryTable(rows(20)), [Counted(), Counted(name="late", after=("fake",), batch=100)], worker="w", batch=5)
    assert sizes["fake"] == [7, 7, 6]
    assert sum(sizes["late"]) == 20


class Counting(MemoryBlobs):
    """Notes what is asked of it, and by which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    def get(self, key: str) -> bytes:
        self.asked.append((key, threading.current_thread().name))
        return super().get(key)


def test_reading_ahead_ends_at_its_bytes_and_passes_over_what_is_missing() -> None:
    blobs = Counting()
    keys = [blobs.put(bytes([n]) * 100) for n in range(5)]
    found = read_ahead(blobs, ["0" * 64, *keys, *keys], 250, lambda: True)
    assert list(found) == keys[:3]
    assert [key for key, _ in blobs.asked] == ["0" * 64, *keys[:3]]
    assert read_ahead(blobs, keys, 250, lambda: False) == {}


def test_given_blobs_go_before_the_store_and_every_question_is_told() -> None:
    store, told = Counting(), []
    key, other = store.put(b"one"), store.put(b"two")
    given: Blobs = Given(store, told.append)
    assert isinstance(given, Given)
    given.hold({key: b"ahead"})
    assert (given.get(key), given.get(other), told) == (b"ahead", b"two", [key, other])
    assert [asked for asked, _ in store.asked] == [other]
    assert given.put(b"three") == store.put(b"three")
    assert given.asked is store.asked  # what else the store has
    with pytest.raises(KeyError):
        given.get("0" * 64)


def test_blobs_are_read_while_the_task_works() -> None:
    blobs = Counting()
    table = MemoryTable(rows(60, blobs))
    task = Decode(blobs=blobs, least_px=1)
    assert run(table, [task], worker="w", batch=10)["decode"].kept == 60
    assert task.blobs is blobs
    assert len(blobs.asked) == 60  # each once
    assert sum(thread == "ahead" for _, thread in blobs.asked) == 50


def test_without_prefetch_nothing_is_claimed_ahead() -> None:
    blobs = Counting()
    table = MemoryTable(rows(30, blobs))
    held: list[int] = []

    class Watching(FakeTask):
        def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
            held.append(30 - table.stats()["fake"].done - table.due("fake"))
            return FakeTask.__call__(self, rows)

    run(table, [Watching()], worker="w", batch=10, limits={"fake": {"prefetch_bytes": 0}})
    assert held == [10, 10, 10]


def claims(count: int, attempt: int = 1) -> list[Claim]:
    return [Claim(row=row, token=1, id=row.id, attempt=attempt) for row in rows(count)]


def turn(attempt: int = 1, **limits: Any) -> Turn:
    return Turn(task=FakeTask(), limits=Limits(**limits), claims=claims(2, attempt))


def test_nothing_is_claimed_beside_rows_that_may_kill_the_worker() -> None:
    assert turn().may_be_followed
    assert not turn(attempt=2).may_be_followed
    assert turn(attempt=2, isolated=True).may_be_followed
    assert not turn(prefetch_bytes=0).may_be_followed


def test_the_batch_ahead_is_handed_out_before_another_is_fed() -> None:
    fed = iter([turn(), None, turn(), ValueError("table gone")])
    order: list[str] = []

    def feed() -> Turn | None:
        order.append(threading.current_thread().name)
        found = next(fed)
        if isinstance(found, Exception):
            raise found
        return found

    ahead = Ahead(feed)
    ahead.start()
    assert ahead.take(lambda: False) is not None
    ahead.start()
    assert ahead.take(lambda: False) is not None  # the one ahead was empty; the work meanwhile may have filled it
    ahead.start()
    with pytest.raises(ValueError, match="table gone"):
        ahead.take(lambda: False)
    assert order == ["ahead", "ahead", threading.current_thread().name, "ahead"]


def test_nobody_waits_for_a_batch_that_is_not_wanted_any_more() -> None:
    going = threading.Event()

    def feed() -> None:
        going.wait(60)

    ahead = Ahead(feed)
    ahead.start()
    assert ahead.take(lambda: True) is None
    assert ahead.end(0.01)
    going.set()


class Recorder:
    """An `extend` that notes and may fail."""

    def __init__(self, fails: int = 0) -> None:
        self.seen: list[tuple[str, int]] = []
        self.beats = threading.Semaphore(0)
        self.fails = fails

    def __call__(self, task: str, held: Iterable[Claim], lease_s: float) -> int:
        self.seen.append((task, len(list(held))))
        self.beats.release()
        if len(self.seen) <= self.fails:
            raise RuntimeError("shard down")
        return 0

    def wait(self, beats: int) -> None:
        for _ in range(beats):
            assert self.beats.acquire(timeout=30)


def test_a_pulse_extends_what_is_held_even_after_a_beat_that_failed() -> None:
    extend = Recorder(fails=2)
    with Pulse(extend, 0.03) as pulse:
        pulse.alive(60)
        first, _ = pulse.hold("one", claims(2)), pulse.hold("two", claims(3))
        extend.wait(6)
        pulse.drop(first)
        extend.wait(6)
    assert {("one", 2), ("two", 3)} == set(extend.seen)
    assert extend.seen[-2:] == [("two", 3)] * 2


def test_a_pulse_ends_with_the_signs_of_life() -> None:
    extend = Recorder()
    with Pulse(extend, 0.03) as pulse:
        pulse.hold("one", claims(2))
        assert not extend.beats.acquire(timeout=0.3)
        pulse.alive(60)
        extend.wait(2)


def test_a_table_that_cannot_extend_gets_no_pulse() -> None:
    with Pulse(None, 0.001) as pulse:
        pulse.hold("one", claims(1))
        assert "pulse" not in {thread.name for thread in threading.enumerate()}
