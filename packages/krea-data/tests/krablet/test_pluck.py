import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from krea_data.krablet import Krablet, pluck
from krea_data.rows import Result, Row
from krea_data.testing import CrashingTask, FakeTask, rows

pytestmark = pytest.mark.postgres
GOOD = CrashingTask(poison=frozenset())


@pytest.fixture
def table(new_dsns: Callable[[int], list[str]]) -> Iterator[Krablet]:
    with Krablet(new_dsns(2), patience_s=20.0) as krablet:
        krablet.add(rows(300))
        yield krablet


@contextmanager
def wide_integers() -> Iterator[None]:
    """Python itself refuses to write out such numbers unless told so."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(before)


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
    assert [(dead.id, dead.error.partition("\n")[0]) for dead in table.dead("score")] == [
        ("synthetic/00123", "RuntimeError: cannot work on synthetic/00123"),
        ("synthetic/00200", "RuntimeError: cannot work on synthetic/00200"),
    ]
    assert pluck.map(GOOD, table, into="score").rows == 2
    assert table.dead("score") == []


def test_dicts_and_nothing_are_answers_too(table: Krablet) -> None:
    def some(rows: Sequence[Row]) -> list[Any]:
        return [None if row.id.endswith("7") else {"label": row.meta["label"]} for row in rows]

    assert pluck.map(some, table, into="score") == pluck.Mapped(rows=300)
    found = {row.id: row.results["score"].value for row in table.scan(kept_by=["score"])}
    assert len(found) == 270
    assert found["synthetic/00012"] == {"label": "thing 12"}
    assert pluck.map(lambda rows: None, table, into="score") == pluck.Mapped(rows=30)


def test_a_function_sees_what_other_tasks_found(table: Krablet) -> None:
    table.put("size", {row.id: Result(value={"px": 9}, drop=None) for row in rows(2)})
    table.put("flat", {"synthetic/00000": Result(drop="flat")})
    seen: dict[str, Any] = {}

    def look(rows: Sequence[Row]) -> None:
        seen.update({row.id: (row.results, row.meta["source"]) for row in rows})

    pluck.map(look, table, into="score")
    both = {"size": Result(value={"px": 9}), "flat": Result(drop="flat")}
    assert seen["synthetic/00000"] == (both, "synthetic")
    assert seen["synthetic/00001"][0] == {"size": Result(value={"px": 9})}


def test_results_that_cannot_be_stored_are_faults_of_their_rows(table: Krablet) -> None:
    def huge(rows: Sequence[Row]) -> list[Any]:
        odd: dict[str, Any] = {
            "synthetic/00001": {"n": 10**140000},  # JSON, but no number of PostgreSQL
            "synthetic/00002": {"n": float("nan")},
            "synthetic/00003": {"text": "\0"},
            "synthetic/00004": "no result",
        }
        return [odd.get(row.id, {}) for row in rows]

    with wide_integers():
        assert pluck.map(huge, table, into="score") == pluck.Mapped(rows=296, failed=4)
    assert [dead.id[-1] for dead in table.dead("score")] == ["1", "2", "3", "4"]


def test_bad_arguments_are_named(table: Krablet) -> None:
    with pytest.raises(ValueError, match="no table 'records'"):
        pluck.Table("records", krablet=table)
    with pytest.raises(ValueError, match="batch 0"):
        pluck.map(GOOD, table, into="score", batch=0)
    with pytest.raises(ValueError, match="no name for a task"):
        pluck.map(GOOD, table, into="No Name")


def test_an_empty_table_is_done_at_once(new_dsns: Callable[[int], list[str]]) -> None:
    with Krablet(new_dsns(1)) as krablet:
        assert pluck.map(GOOD, krablet, into="score") == pluck.Mapped()
