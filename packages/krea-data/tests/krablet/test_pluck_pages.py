"""How large pages are, how they are read, and when the workers of a map start and end."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from krea_data.krablet import Krablet, pluck
from krea_data.krablet.pluck import child, maps, walk
from krea_data.krablet.pluck import rows as pages
from krea_data.krablet.pluck.calls import Failed, Said, answered
from krea_data.krablet.pluck.crew import Crew
from krea_data.krablet.pluck.functions import pickled
from krea_data.krablet.pluck.hand import Hand
from krea_data.krablet.pluck.keys import make_key
from krea_data.krablet.pluck.question import Job, Limits, Question
from krea_data.krablet.pluck.rows import Raw, Reader
from krea_data.krablet.pluck.walk import Worker
from krea_data.rows import Result, Row
from krea_data.testing import rows

ROWS, BATCH = 300, 10
JOB = Job(name="score", question=Question(into="score"), limits=Limits(batch=BATCH))
RAWS = [Raw(0, f"{number:03d}", "", "{}") for number in range(8)]
LONG_S = 3600.0


class Fake:
    """A caller that answers so many batches of a page, fails for pages with one of the `bad`, and takes notes."""

    def __init__(self, batches: int, bad: Sequence[str] = ()) -> None:
        self.rows, self.bad = batches * BATCH, set(bad)
        self.pages: list[list[str]] = []
        self.said: list[str] = []

    def start(self, rows: Sequence[Raw]) -> None:
        self.pages.append([row.id for row in rows])

    def finish(self) -> list[Said]:
        ids = self.pages[-1]
        if self.bad.intersection(ids):
            raise Failed("cannot work on it")
        self.said += ids[: self.rows]
        return [("{}", None)] * len(ids[: self.rows])


@pytest.fixture
def table(new_dsns: Callable[[int], list[str]]) -> Iterator[Krablet]:
    with Krablet(new_dsns(1), patience_s=20.0) as table:
        table.add(rows(ROWS))
        yield table


def worked(table: Krablet, caller: Fake) -> list[int]:
    """The sizes of the pages that a caller is given by the only worker of a map with one range."""
    maps.begin(table, JOB, 1)
    Worker(table, JOB, "a").work(caller)
    assert sorted(set(caller.said)) == [row.id for row in rows(ROWS)]
    assert max(Counter(caller.said).values()) == 1
    assert table.stats()["score"].done == ROWS - len(caller.bad)
    return [len(page) for page in caller.pages]


@pytest.mark.postgres
def test_pages_grow_while_the_function_is_quick(table: Krablet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "QUICK_S", LONG_S)
    monkeypatch.setattr(walk, "_PAGE_ROWS", 50)
    sizes = worked(table, Fake(batches=ROWS))
    assert sizes[0] == BATCH
    assert max(sizes) == 50
    assert len(sizes) < ROWS // BATCH // 2


@pytest.mark.postgres
def test_a_slow_function_gets_a_batch_at_a_time(table: Krablet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "QUICK_S", 0.0)
    assert set(worked(table, Fake(batches=ROWS))) == {BATCH}


@pytest.mark.postgres
@pytest.mark.parametrize("batches", [1, 3])
def test_what_is_left_of_a_page_comes_again(table: Krablet, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "QUICK_S", LONG_S)
    caller = Fake(batches)
    sizes = worked(table, caller)
    assert max(sizes) > batches * BATCH
    pairs = [(page[batches * BATCH :], after) for page, after in pairwise(caller.pages)]
    assert all(after[0] == left[0] and len(after) <= batches * BATCH for left, after in pairs if left)


def test_a_page_that_fails_is_cut_down_to_its_first_batch() -> None:
    caller = Fake(batches=1, bad=["007"])
    caller.start(RAWS)
    assert answered(caller, RAWS, 4) == [("{}", None)] * 4
    assert [len(page) for page in caller.pages] == [8, 4]


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Callable[..., Hand]]:
    """Makes children that go on with the batches of a page for as long as is given."""
    made: list[Hand] = []

    def make(fn: Any, quick_s: float) -> Hand:
        monkeypatch.setattr(child, "QUICK_S", quick_s)
        made.append(Hand(pickled(fn, bytes(32)).blob, "score", Limits(batch=2), lambda: None))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(("quick_s", "count"), [(LONG_S, 8), (0.0, 2)])
def test_a_child_answers_all_batches_that_are_quick(hand: Callable[..., Hand], quick_s: float, count: int) -> None:
    def sizes(rows: Sequence[Row]) -> list[dict[str, int]]:
        return [{"n": len(rows)} for _ in rows]

    mine = hand(sizes, quick_s)
    for _ in range(2):
        mine.start(RAWS)
        assert mine.finish() == [('{"n":2}', None)] * count


def test_a_child_answers_what_came_before_a_batch_that_raises(hand: Callable[..., Hand]) -> None:
    def odd(rows: Sequence[Row]) -> None:
        if rows[0].id == "004":
            raise RuntimeError("not this one")

    mine = hand(odd, LONG_S)
    mine.start(RAWS)
    assert mine.finish() == [None] * 4
    mine.start(RAWS[4:])
    with pytest.raises(Failed, match="RuntimeError: not this one"):
        mine.finish()


class Explained:
    """A connection that notes the queries and their plans."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.queries, self.plans = connection, set[bytes](), list[str]()

    def execute(self, query: bytes, values: dict[str, Any]) -> Any:
        self.queries.add(query)
        self.plans += [line for (line,) in self.connection.execute(b"explain (costs off) " + query, values)]
        return self.connection.execute(query, values)


@pytest.mark.postgres
def test_no_page_is_read_by_a_join_with_all_results(table: Krablet) -> None:
    """Such a plan is right while there are none, and is kept when there are millions."""
    table.put("size", {row.id: Result(value={"px": 9}) for row in rows(2)})
    table.declare_results("score")
    seen: list[str] = []

    def read(connection: Any, dag: Any) -> list[Raw]:
        explained: Any = Explained(connection)
        found = Reader(JOB.question).read(explained, dag, after="", upper=None, limit=ROWS)
        seen.extend(explained.plans)
        return found

    assert [row.results for row in table.guarded(0, read)][:3] == [(("size", '{"px": 9}', None),)] * 2 + [()]
    assert not [line for line in seen if "Anti Join" in line or "Hash" in line or "Merge" in line]


@pytest.mark.postgres
def test_plans_are_made_anew_while_results_become_more(table: Krablet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "aged", str)

    def read(connection: Any, dag: Any) -> int:
        explained: Any = Explained(connection)
        reader = Reader(JOB.question)
        for _ in range(20):
            reader.read(explained, dag, after="", upper=None, limit=5)
        return len(explained.queries)

    assert table.guarded(0, read) == 5


@pytest.mark.postgres
def test_a_range_of_which_nothing_is_left_hears_of_new_tasks(table: Krablet) -> None:
    """An empty page says nothing of the tasks by which it was asked for."""
    maps.begin(table, JOB, 1)
    with Krablet(table.dsns) as other:
        other.declare_results("size")
    reader = Reader(JOB.question)
    last = rows(ROWS)[-1].id
    assert table.guarded(0, lambda c, d: reader.read(c, d, after=last, upper=None, limit=5)) == []
    assert "size" in table.shards.view.dags[0].after


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    """The processes of workers."""
    found: list[subprocess.Popen[bytes]] = []
    popen: Any = subprocess.Popen

    def noted(*args: Any, **kwargs: Any) -> "subprocess.Popen[bytes]":
        found.append(popen(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    return found


@pytest.mark.postgres
def test_workers_of_a_map_that_cannot_begin_go_quietly(
    table: Krablet, tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    images = pluck.Table("images", krablet=table, key_file=make_key(tmp_path / "key"))
    maps.begin(table, JOB, 1)
    with pytest.raises(ValueError, match="'score' asks another question"):
        images.map(len, into="other", name="score", workers=1, show=False)
    assert [process.returncode for process in started] == [0]


def test_a_crew_that_has_ended_is_heard_of_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    popen: Any = subprocess.Popen
    line = [sys.executable, "-c", "input()"]
    monkeypatch.setattr(subprocess, "Popen", lambda _, **kwargs: popen(line, **kwargs))
    mine = Crew(name="score", dsns=[], key_file=tmp_path / "key", lost=lambda _: None)
    mine.start(2)
    mine.order()
    mine.rest(LONG_S, threading.Event())
    while mine.tend(moving=False):
        mine.rest(LONG_S, threading.Event())
    mine.stop()
