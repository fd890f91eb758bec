from collections.abc import Callable, Iterator, Sequence

import pytest
from krea_data.krablet import Krablet, KrabletError, pluck
from krea_data.rows import Result, Row
from krea_data.testing import CrashingTask, FakeTask, rows

pytestmark = pytest.mark.postgres
GOOD = CrashingTask(poison=frozenset())


@pytest.fixture
def table(new_dsns: Callable[[int], list[str]]) -> Iterator[Krablet]:
    with Krablet(new_dsns(2), patience_s=20.0) as krablet:
        krablet.add(rows(300))
        yield krablet


class Counting:
    """A function that notes what it was given, and stops after some pages."""

    def __init__(self, pages: int = 10**9) -> None:
        self.seen: list[str] = []
        self.pages = pages

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        if not self.pages:
            raise KeyboardInterrupt
        self.pages -= 1
        self.seen += [row.id for row in rows]
        return [Result(value={"n": len(self.seen)}) for _ in rows]


def test_every_row_once(table: Krablet) -> None:
    count, steps = Counting(), []
    assert pluck.map(count, table, into="score", batch=32, on_progress=steps.append) == pluck.Mapped(rows=300)
    assert sorted(count.seen) == [row.id for row in rows(300)]
    assert sum(step.rows for step in steps) == 300
    assert len(list(table.scan(kept_by=["score"]))) == 300


def test_a_stopped_map_goes_on_where_it_was(table: Krablet) -> None:
    first, second = Counting(pages=4), Counting()
    with pytest.raises(KeyboardInterrupt):
        pluck.map(first, table, into="score", batch=10)
    assert pluck.map(second, table, into="score", batch=10).rows == 300 - len(first.seen)
    assert sorted(first.seen + second.seen) == [row.id for row in rows(300)]


def test_rows_with_a_result_are_passed_over(table: Krablet) -> None:
    pluck.map(Counting(), table, into="score")
    table.add(rows(310))
    count = Counting()
    assert pluck.map(count, table, into="score").rows == 10
    assert sorted(count.seen) == [row.id for row in rows(310)][300:]


def test_only_what_others_kept(table: Krablet) -> None:
    table.put("flat", {row.id: Result(drop="flat" if row.id.endswith("7") else None) for row in rows(300)})
    late = FakeTask(name="late", after=("score",))
    table.register([late])
    assert pluck.map(GOOD, table, into="score", kept_by=["flat"]).rows == 270
    assert table.due("late") == 270


def test_a_row_that_raises_is_reported_and_the_others_are_stored(table: Krablet) -> None:
    bad = CrashingTask(poison=frozenset({"synthetic/00123", "synthetic/00200"}))
    assert pluck.map(bad, table, into="score") == pluck.Mapped(rows=298, failed=2)
    assert [(dead.id, dead.error) for dead in table.dead("score")] == [
        ("synthetic/00123", "RuntimeError: cannot work on synthetic/00123"),
        ("synthetic/00200", "RuntimeError: cannot work on synthetic/00200"),
    ]
    assert pluck.map(GOOD, table, into="score").rows == 2
    assert table.dead("score") == []


def test_processes_share_the_ranges(table: Krablet) -> None:
    assert pluck.map(GOOD, table, into="score", batch=16, processes=2).rows == 300
    assert len(list(table.scan(kept_by=["score"]))) == 300


def test_a_killed_process_is_reported_and_the_same_call_goes_on(table: Krablet) -> None:
    deadly = CrashingTask(poison=frozenset({"synthetic/00123"}), kill=True)
    with pytest.raises(KrabletError, match="ended with -9"):
        pluck.map(deadly, table, into="score", batch=8, processes=2)
    done = len(list(table.scan(kept_by=["score"])))
    assert pluck.map(GOOD, table, into="score").rows == 300 - done


def test_bad_arguments_are_named(table: Krablet) -> None:
    with pytest.raises(ValueError, match="cannot be sent to other processes"):
        pluck.map(lambda rows: [], table, into="score", processes=2)
    with pytest.raises(ValueError, match="batch 0"):
        pluck.map(GOOD, table, into="score", batch=0)
    with pytest.raises(ValueError, match="no name for a task"):
        pluck.map(GOOD, table, into="No Name")


def test_an_empty_table_is_done_at_once(new_dsns: Callable[[int], list[str]]) -> None:
    with Krablet(new_dsns(1)) as krablet:
        assert pluck.map(GOOD, krablet, into="score") == pluck.Mapped()
