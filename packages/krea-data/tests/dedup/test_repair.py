import random
import threading
import time
from collections.abc import Callable

import pytest
from krea_data.dedup import Index, Limits, forget, repair
from krea_data.dedup.repair import due
from krea_data.krablet import Krablet
from krea_data.rows import Result, Row
from krea_data.tasks import Dedup

pytestmark = pytest.mark.postgres
STAGE = {"dedup": Limits()}


def results(krablet: Krablet, stage: str = "dedup") -> dict[str, Result]:
    return {row.id: row.results[stage] for row in krablet.scan() if stage in row.results}


@pytest.mark.parametrize("seed", range(3))
def test_the_outcome_is_that_of_the_pass_over_the_whole_table(
    krablet: Krablet, many: Callable, bare: Callable, seed: int
) -> None:
    rows = many(seed, 220)
    krablet.add(bare(rows))
    index, draw = Index(krablet, STAGE), random.Random(seed)
    arrived = rows.copy()
    draw.shuffle(arrived)
    taken = 0
    while taken < len(arrived):
        size = draw.choice((1, 30, 90))
        index.take(arrived[taken : taken + size])
        taken += size
        if draw.random() < 0.6:
            repair(index, "dedup")
            assert results(krablet) == Dedup().compare(arrived[:taken])
    repair(index, "dedup")
    expected = Dedup().compare(rows)
    assert results(krablet) == expected
    assert {result.drop for result in expected.values()} == {None, "duplicate", "near duplicate"}


def test_only_what_has_changed_is_repaired(krablet: Krablet, row: Callable, bare: Callable) -> None:
    rows = [row("a/1", 1), row("a/2", 3), row("b/1", (1 << 60) - 1 << 80)]
    krablet.add(bare([*rows, row("a/3")]))
    index = Index(krablet, STAGE)
    index.take(rows)
    assert repair(index, "dedup") == 3
    assert repair(index, "dedup") == 0
    index.take([row("a/3", 7)])
    assert repair(index, "dedup") == 3, "the cluster of a, not b"


def test_a_better_row_of_the_same_bytes_takes_over(krablet: Krablet, row: Callable, bare: Callable) -> None:
    rows = [row("a/2", 1, blob="x"), row("b/1", 3, size=(64, 65)), row("a/1", 1, blob="x", size=(99, 99))]
    krablet.add(bare(rows))
    index = Index(krablet, STAGE)
    index.take(rows[:2])
    repair(index, "dedup")
    assert {one: result.drop for one, result in results(krablet).items()} == {"a/2": "near duplicate", "b/1": None}
    index.take(rows[2:])
    repair(index, "dedup")
    assert results(krablet) == Dedup().compare(rows)


def test_stages_have_limits_of_their_own(krablet: Krablet, many: Callable, bare: Callable) -> None:
    rows = many(7, 150)
    krablet.add(bare(rows))
    stages = {"dedup": Limits(phash_limit=3, colour_limit=0), "midtrain": Limits(phash_limit=10, mean_limit=40)}
    index = Index(krablet, stages)
    index.take(rows)
    for stage, limits in stages.items():
        repair(index, stage)
        task = Dedup(phash_limit=limits.phash_limit, colour_limit=limits.colour_limit, mean_limit=limits.mean_limit)
        assert results(krablet, stage) == task.compare(rows)
    assert results(krablet, "dedup") != results(krablet, "midtrain")


def test_a_stage_wider_than_the_search_is_refused(krablet: Krablet, row: Callable, bare: Callable) -> None:
    rows = [row("a/1", 1), row("a/2", 3)]
    krablet.add(bare(rows))
    Index(krablet, STAGE).take(rows)
    wide = Index(krablet, {"dedup": Limits(phash_limit=9)})
    with pytest.raises(ValueError, match="search_again"):
        repair(wide, "dedup")
    wide.search_again()
    assert repair(wide, "dedup") == 2


@pytest.mark.parametrize("change", ["a near one comes", "a better row of the same bytes comes", "the row is forgotten"])
def test_what_changes_during_a_repair_stays_due(
    krablet: Krablet, row: Callable, bare: Callable, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    rows = [row("a/1", 1), row("a/2", 3), row("a/3", 1, blob="bytes of a/1", size=(99, 99))]
    krablet.add(bare(rows))
    index, put = Index(krablet, STAGE), krablet.put
    index.take(rows[:1] if change != "the row is forgotten" else rows[:2])
    left = {"a near one comes": rows[:2], "a better row of the same bytes comes": [rows[0], rows[2]]}

    def put_late(task: str, found: dict[str, Result]) -> None:
        monkeypatch.setattr(krablet, "put", put)
        if change == "the row is forgotten":
            forget(index, rows[:1])
        else:
            index.take(left[change])
        put(task, found)

    monkeypatch.setattr(krablet, "put", put_late)
    repair(index, "dedup")
    expected = Dedup().compare(left.get(change, rows[1:2]))
    assert {row_id: result for row_id, result in results(krablet).items() if row_id in expected} == expected


def test_a_repair_that_is_cut_off_is_done_again(
    krablet: Krablet, row: Callable, bare: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("a/1", 1), row("a/2", 3)]
    krablet.add(bare(rows))
    index = Index(krablet, STAGE)
    index.take(rows)
    with monkeypatch.context() as patch:
        patch.setattr(krablet, "put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            repair(index, "dedup")
    assert len(due(krablet, "dedup", 10)) == 2
    assert repair(index, "dedup") == 2
    assert due(krablet, "dedup", 10) == []


def test_rows_that_are_forgotten_do_not_count(krablet: Krablet, row: Callable, bare: Callable) -> None:
    rows = [row("a/1", 1), row("a/2", 3), row("a/3", 3, blob="bytes of a/2"), row("a/4", 7)]
    krablet.add(bare(rows))
    index = Index(krablet, STAGE)
    index.take(rows)
    repair(index, "dedup")
    left: list[Row] = [rows[2], rows[3]]
    forget(index, rows[:2])
    repair(index, "dedup")
    found = results(krablet)
    assert {one.id: found[one.id] for one in left} == Dedup().compare(left)
    index.take(rows[:2])
    repair(index, "dedup")
    assert results(krablet) == Dedup().compare(rows)


def test_repairs_at_the_same_time_wait_for_each_other(krablet: Krablet, many: Callable, bare: Callable) -> None:
    rows = many(12, 160)
    krablet.add(bare(rows))
    index, at_work, most = Index(krablet, STAGE), threading.Semaphore(2), 0
    index.take(rows)
    put = krablet.put

    def counted(task: str, found: dict[str, Result]) -> None:
        nonlocal most
        at_work.acquire()
        most = max(most, 2 - at_work._value)
        time.sleep(0.05)
        put(task, found)
        at_work.release()

    krablet.put = counted  # type: ignore[method-assign]
    threads = [threading.Thread(target=repair, args=(index, "dedup")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for part in range(0, len(rows), 20):
        index.take(rows[part : part + 20])
    for thread in threads:
        thread.join()
    repair(index, "dedup")
    assert most == 1
    assert results(krablet) == Dedup().compare(rows)
