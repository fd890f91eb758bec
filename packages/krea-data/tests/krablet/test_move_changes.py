"""What is declared or ordered while a slot is on its way, by a process that does not know its new shard, goes along."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from krea_data.contract_queue import TypedFake
from krea_data.krablet import Krablet
from krea_data.krablet.dag import load
from krea_data.krablet.moves.move import Moved, add_shard, move
from krea_data.krablet.queues import controls
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.records.tables import declare_record, load_records
from krea_data.rows import Result
from krea_data.testing import FakeTask, rows

pytestmark = pytest.mark.postgres
NewDsns = Callable[[int], list[str]]
TASK = FakeTask(name="fake")
IDS = [row.id for row in rows(40)]


@pytest.fixture
def mover(new_dsns: NewDsns) -> Iterator[Krablet]:
    """A krablet whose second shard is new and empty; see `elsewhere`."""
    with Krablet(new_dsns(1), patience_s=20.0, bits=1) as krablet:
        krablet.add(rows(40))
        krablet.register([TASK])
        yield krablet


@pytest.fixture
def elsewhere(mover: Krablet, new_dsns: NewDsns) -> Iterator[Krablet]:
    """A process that opened the krablet before it got its second shard."""
    with Krablet(mover.dsns, patience_s=20.0) as krablet:
        add_shard(mover, new_dsns(1)[0])
        yield krablet


def moved_with(mover: Krablet, change: Callable[[], object], step: str = "caught up") -> list[str]:
    """Move slot 1, with a change on the way; return the ids in it."""
    changes = [change]

    def report(moved: Moved) -> None:
        if moved.step == step and changes:
            changes.pop()()

    assert move(mover, [1], 1, on_progress=report) == 1
    return [row_id for row_id in IDS if mover.router.slot(row_id) == 1]


def claimed(krablet: Krablet) -> set[str]:
    return {claim.id for claim in krablet.claim(TASK, "w", 100, 60.0)}


@pytest.mark.parametrize("step", ["begun", "caught up"])
def test_rows_that_become_urgent_are_found_where_they_went(mover: Krablet, elsewhere: Krablet, step: str) -> None:
    there = moved_with(mover, lambda: elsewhere.prioritise("fake", IDS[::2], 5), step)
    assert set(there) & set(IDS[::2])
    with psycopg.connect(mover.dsns[1]) as connection:
        assert load(connection).bands == {"fake": (5,)}
    assert claimed(mover) | claimed(mover) == set(IDS)


def test_a_pause_holds_where_the_rows_went_until_it_ends(mover: Krablet, elsewhere: Krablet) -> None:
    moved_with(mover, lambda: elsewhere.pause("fake"))
    with Krablet(mover.dsns) as again:
        assert claimed(again) == set()
        assert controls.paused(again, "fake") == [0, 1]
        elsewhere.resume("fake")
        assert claimed(again) == set(IDS)


def test_a_pause_that_ends_meanwhile_does_not_go_along(mover: Krablet, elsewhere: Krablet) -> None:
    elsewhere.pause("fake")
    moved_with(mover, lambda: elsewhere.resume("fake"))
    assert controls.paused(mover, "fake") == []
    assert claimed(mover) == set(IDS)


def test_who_pauses_after_a_move_learns_of_the_new_shard(mover: Krablet, elsewhere: Krablet) -> None:
    moved_with(mover, lambda: None)
    elsewhere.pause("fake")
    assert controls.paused(mover, "fake") == [0, 1]


def test_a_task_that_waits_for_another_from_now_on_does_so_everywhere(mover: Krablet, elsewhere: Krablet) -> None:
    """No table comes with that."""
    mover.register([FakeTask(name="first")])
    there = moved_with(mover, lambda: elsewhere.register([FakeTask(name="fake", after=("first",))]))
    with psycopg.connect(mover.dsns[1]) as connection:
        assert load(connection).after == {"fake": ("first",), "first": ()}
    with Krablet(mover.dsns) as again:
        again.put("first", {row_id: Result() for row_id in there})
        assert again.pending("fake") == len(there)


def test_typed_columns_that_come_meanwhile_are_there(mover: Krablet, elsewhere: Krablet) -> None:
    typed = TypedFake(columns={"score": float, "words": int}, indexed=("score",))
    there = moved_with(mover, lambda: elsewhere.register([typed]))
    found = [load_of(dsn) for dsn in mover.dsns]
    assert found[0] == found[1] == ({"score": "float", "words": "int"}, {"score"})
    mover.put("fake", {row_id: Result(value={"score": 2.5, "words": 3}) for row_id in there})
    with psycopg.connect(mover.dsns[1]) as connection:
        assert connection.execute("select distinct v_score, v_words from result_fake").fetchall() == [(2.5, 3)]


def load_of(dsn: str) -> tuple[dict[str, str], set[str]]:
    """The typed columns of a shard's tasks, and those with an index, as the shard says."""
    with psycopg.connect(dsn) as connection:
        dag = load(connection)
        return dict(dag.columns.get("fake", {})), set(dag.indexed.get("fake", ()))


def test_a_typed_column_is_what_its_shard_says_it_is(mover: Krablet, elsewhere: Krablet) -> None:
    """The two shards have a column of two types; the new shard may keep its own, but has to know which that is."""
    mover.register([TypedFake(columns={"score": float})])
    elsewhere.register([TypedFake(columns={"score": str})])
    moved_with(mover, lambda: None)
    kinds = {"double precision": "float", "text": "str"}
    for dsn in mover.dsns:
        with psycopg.connect(dsn) as connection:
            ((kind,),) = connection.execute(
                "select data_type::text from information_schema.columns where table_schema = current_schema()"
                " and table_name = 'result_fake' and column_name = 'v_score'"
            ).fetchall()
        assert load_of(dsn)[0] == {"score": kinds[kind]}


@pytest.mark.parametrize("step", ["copied", "caught up"])
def test_a_column_of_a_record_that_comes_meanwhile_brings_its_values(
    mover: Krablet, elsewhere: Krablet, step: str
) -> None:
    old = Record("click", (Column("n", "int", "add"),))
    new = Record("click", (*old.columns, Column("page", "text", "set")))
    with psycopg.connect(elsewhere.dsns[0], autocommit=True) as source:

        def widen() -> None:
            declare_record(source, new)
            source.execute("update record_click set page = 'last'")

        declare_record(source, old)
        source.execute("insert into record_click (slot, id, n) select 1, id, 7 from images where slot = 1")
        there = moved_with(mover, widen, step)
    with psycopg.connect(mover.dsns[1]) as target:
        assert load_records(target)["click"] == new
        found = target.execute("select id, n, page from record_click order by id").fetchall()
        assert found == [(row_id, 7, "last") for row_id in there]
