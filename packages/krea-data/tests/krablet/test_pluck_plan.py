"""Where ranges are cut, and cut again by idle workers."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from krea_data.krablet import Krablet, pluck
from krea_data.krablet.pluck import maps, plan, spans
from krea_data.krablet.pluck.keys import make_key
from krea_data.krablet.pluck.question import Job, Limits, Question, key_range
from krea_data.krablet.pluck.rows import Reader
from krea_data.krablet.pluck.spans import Page, Span
from krea_data.krablet.queues.answers import Answer
from krea_data.rows import Result, Row
from krea_data.testing import rows

JOB = Job(name="score", question=Question(into="score"), limits=Limits(batch=4))
GIVEN: dict[str, Any] = {"into": "score", "worker": "a", "lease_s": 60.0}


@pytest.fixture
def table(new_dsns: Callable[[int], list[str]]) -> Iterator[Krablet]:
    with Krablet(new_dsns(1), patience_s=20.0) as table:
        yield table


def lent(table: Krablet, worker: str = "a", lease_s: float = 60.0) -> Span | None:
    return table.guarded(0, lambda c, _: spans.lend(c, "score", worker, lease_s))


def stolen(table: Krablet, worker: str = "b") -> Span | None:
    return table.guarded(0, lambda c, d: plan.steal(c, d, JOB, worker))


def moved(table: Krablet, span: Span, cursor: str, *, ahead: str = "", done: bool = False) -> spans.Moved | None:
    answers = [Answer(table.router.slot(cursor), cursor, "{}", None)]
    page = Page(cursor=cursor, ahead=ahead, done=done, rows=1, answers=answers, faults=[])
    return table.guarded(0, lambda c, d: spans.advance(c, d, "score", span, page, **GIVEN))


def name(number: int) -> str:
    return f"synthetic/{number:05d}"


@given(st.sets(st.text(max_size=3), max_size=200), st.integers(1, 20))
def test_cuts_are_ids_and_leave_equal_parts(ids: set[str], parts: int) -> None:
    ordered = sorted(ids)
    found = plan.cuts(ordered, parts)
    assert found == sorted(set(found))
    assert set(found) <= ids
    ends = [0, *(ordered.index(cut) + 1 for cut in found), len(ordered)]
    sizes = [right - left for left, right in pairwise(ends)]
    if len(ids) >= parts:
        assert len(found) == parts - 1
        assert max(sizes) - min(sizes) <= 1


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_prefix_is_the_range_of_what_starts_with_it(prefix: str, other: str) -> None:
    low, high = key_range(prefix)
    for text in (other, prefix + other, prefix):
        key, ends = text.encode(), high is not None and text.encode() >= high.encode()
        assert (key >= (low or "").encode() and not ends) == text.startswith(prefix)


@pytest.mark.postgres
def test_ranges_cover_all_and_are_even(table: Krablet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_SAMPLE_ROWS", 1000)  # so that the cuts come from a sample
    monkeypatch.setattr(plan, "_PROBE_BLOCKS", 20)
    ids = [row.id for row in rows(6000)]
    table.add(rows(6000))
    sampled, share = table.guarded(0, lambda c, d: plan.sample(c, d, JOB.question))
    assert 0.05 < share < 0.5
    assert 300 < len(sampled) < 3000
    maps.begin(table, JOB, 8)
    found = table.guarded(
        0, lambda c, _: c.execute("select lower, upper, expected from span order by lower").fetchall()
    )
    assert (found[0][0], found[-1][1], len(found)) == ("", None, 8)
    assert [upper for _, upper, _ in found[:-1]] == [lower for lower, _, _ in found[1:]]
    sizes = [sum(lower < i and (upper is None or i <= upper) for i in ids) for lower, upper, _ in found]
    assert sum(sizes) == 6000
    assert max(sizes) < 1.5 * 6000 / 8
    assert 3000 < sum(expected for *_, expected in found) < 12000


@pytest.mark.postgres
def test_few_rows_make_few_ranges(table: Krablet) -> None:
    table.add(rows(9))
    maps.begin(table, JOB, 16)
    assert maps.counted(table, "score").ranges == 2
    assert maps.counted(table, "score").expected == 9


@pytest.mark.postgres
def test_the_index_bounds_a_page(table: Krablet) -> None:
    table.add(rows(3000))
    table.guarded(0, lambda c, _: c.execute("analyze images"))
    reader = Reader(Question(into="score", low=name(100), high=name(2000)))
    plans: list[str] = []

    class Explaining:
        def execute(self, query: bytes, given: Any) -> Any:
            plans.append("\n".join(line for (line,) in connection.execute(b"explain " + query, given)))
            return connection.execute(query, given)

    def read(connection_: Any, dag: Any) -> list[Any]:
        nonlocal connection
        connection = connection_
        return reader.read(Explaining(), dag, after=name(150), upper=name(160), limit=100)  # pyright: ignore

    connection: Any = None
    assert [row.id for row in table.guarded(0, read)] == [name(number) for number in range(151, 161)]
    assert "Index" in plans[0]
    assert "Index Cond: ((id > 'synthetic/00150'::text) AND (id <= 'synthetic/00160'::text)" in plans[0]


@pytest.mark.postgres
def test_half_of_what_is_left_is_stolen_and_the_page_in_work_is_not(table: Krablet) -> None:
    table.add(rows(100))
    maps.begin(table, JOB, 1)
    mine = lent(table)
    assert mine is not None
    assert mine.upper is None
    assert moved(table, mine, name(19), ahead=name(39)) == spans.Moved(upper=None, running=True)
    theirs = stolen(table)
    assert theirs is not None
    assert (theirs.cursor, theirs.upper) == (name(69), None)
    mine = replace(mine, cursor=name(19))
    assert moved(table, mine, name(39), ahead=name(59)) == spans.Moved(upper=name(69), running=True)
    assert moved(table, mine, name(59)) is None  # it is further by now
    mine = replace(mine, cursor=name(39))
    assert moved(table, mine, name(79)) is None  # no more its own
    again = table.guarded(0, lambda c, _: spans.current(c, "score", mine))
    assert again is not None
    assert (again.cursor, again.upper) == (name(39), name(69))
    assert moved(table, mine, name(69), done=True) is not None
    assert moved(table, theirs, name(99), done=True) is not None
    assert maps.counted(table, "score").done


@pytest.mark.postgres
def test_too_little_is_not_stolen_and_an_old_token_moves_nothing(table: Krablet) -> None:
    table.add(rows(10))
    maps.begin(table, JOB, 1)
    mine = lent(table, lease_s=0.0)
    assert mine is not None
    other = lent(table, "b")
    assert other is not None
    assert other.crashes == 1
    assert moved(table, mine, name(3)) is None
    assert moved(table, other, name(3), ahead=name(8)) is not None
    assert stolen(table, "c") is None
    assert [row.id for row in table.scan(kept_by=["score"])] == [name(3)]


@pytest.mark.postgres
def test_idle_workers_split_a_slow_range(table: Krablet, tmp_path: Path) -> None:
    def skewed(rows: Sequence[Row]) -> list[dict[str, int]]:
        time.sleep(sum(0.1 for row in rows if row.id < "synthetic/00019"))
        return [{"pid": os.getppid()} for _ in rows]

    table.add(rows(320))
    images = pluck.Table("images", krablet=table, key_file=make_key(tmp_path / "key"))
    with images.map(skewed, into="score", batch=2, workers=2, show=False) as map:
        planned = map.progress().ranges
        assert map.wait(60) == pluck.Mapped(rows=320)
        assert map.progress().ranges > planned
    slow = [row.results["score"].value["pid"] for row in table.scan(kept_by=["score"]) if row.id < "synthetic/00019"]
    assert len(set(slow)) == 2


@pytest.mark.postgres
def test_rows_that_moved_behind_a_cursor_are_looked_at_again(table: Krablet) -> None:
    table.add(rows(50))
    seen: list[str] = []

    def look(rows: Sequence[Row]) -> list[Result]:
        if not seen:  # as if a slot had come in, with rows before the cursor
            seen.append("")
            table.guarded(0, lambda c, _: c.execute("update slot_map set epoch = 7 where slot = 0"))
        new = [Row(id="a" + uuid.uuid4().hex, blob="0")] if len(seen) == 41 else []
        table.add(new)
        seen.extend(row.id for row in rows)
        return [Result() for _ in rows]

    assert pluck.map(look, table, into="score", batch=10) == pluck.Mapped(rows=51)
    assert len(seen) == 52
    assert seen[-1].startswith("a")


@pytest.mark.postgres
def test_pages_that_a_crash_of_the_server_took_back_are_done_again(table: Krablet) -> None:
    table.add(rows(200))
    pages: list[str] = []

    def crashing(rows: Sequence[Row]) -> list[Result]:
        pages.append(rows[0].id)
        if len(pages) == 3:  # the last of the first range, and what was stored of it is lost
            table.guarded(0, lambda c, _: c.execute("delete from result_score"))
            table.guarded(0, lambda c, _: c.execute("update span set cursor = lower, rows = 0 where not done"))
        return [Result() for _ in rows]

    pluck.map(crashing, table, into="score", batch=10)
    assert pages[:6] == [name(0), name(10), name(20)] * 2
    assert maps.counted(table, "score").rows == 200
    assert table.stats()["score"].done == 200


@pytest.mark.postgres
def test_a_range_that_ends_with_its_page_because_of_a_thief_is_done(table: Krablet) -> None:
    table.add(rows(30))
    asked = "select token from span where lower = ''"
    tokens: list[Any] = []

    def robbed(rows: Sequence[Row]) -> list[Result]:
        if not tokens:
            tokens.append(table.guarded(0, lambda c, _: c.execute(asked).fetchone()))
            theirs = stolen(table)
            assert theirs is not None
            assert theirs.cursor == rows[-1].id  # the victim's page is all that is left to it
            table.guarded(0, lambda c, _: spans.give_back(c, "score", "b"))
        return [Result() for _ in rows]

    maps.begin(table, JOB, 1)
    assert pluck.map(robbed, table, into="score", batch=15, lease_s=0.5) == pluck.Mapped(rows=30)
    tokens.append(table.guarded(0, lambda c, _: c.execute(asked).fetchone()))
    assert tokens[0] == tokens[1]  # nobody had to lease it again
