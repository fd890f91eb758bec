"""A look over a krablet finds every fault that is planted, says nothing of a sound one, and repairs what is safe."""

import threading
from collections.abc import Callable, Sequence

import pytest
from krea_data.krablet import Krablet
from krea_data.krablet.checks.check import check, repair
from krea_data.krablet.checks.check_server import warnings
from krea_data.krablet.connection import Shard
from krea_data.krablet.moves import move
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.records.tables import declare_record
from krea_data.rows import Result, Row

NewDsns = Callable[[int], list[str]]


class Named:
    """A task that is worked on by hand."""

    def __init__(self, name: str, *after: str) -> None:
        self.name, self.after = name, after

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        raise NotImplementedError


FIRST, SECOND = Named("first"), Named("second", "first")


@pytest.fixture
def dsns(krablet: Krablet) -> tuple[str, ...]:
    """Two shards with rows in all states."""
    krablet.register([FIRST, SECOND])
    krablet.add(Row(id=f"{n}", blob="b") for n in range(200))
    claims = krablet.claim(FIRST, "worker", 150, 600)  # more than one shard has
    krablet.complete("first", {c: Result(value={}, drop="odd" if n % 2 else None) for n, c in enumerate(claims)})
    for number in krablet.shards.numbers:
        krablet.shards.attempt(number, lambda c: declare_record(c, Record("counts", (Column("hits", "int", "add"),))))
    return krablet.dsns


def plant(dsn: str, *statements: str) -> None:
    """Do what nobody should."""
    shard = Shard(0, dsn, 5.0)
    for statement in statements:
        shard.attempt(lambda c, s=statement: c.execute(s.encode()))
    shard.close()


def said(dsns: Sequence[str], *, quick: bool = False) -> list[tuple[str, str, str]]:
    return [(one.level, one.rule, one.text) for one in check(dsns, quick=quick) if one.rule != "server"]


def test_a_sound_krablet_is_sound(dsns: tuple[str, ...]) -> None:
    steps: list[tuple[str, int, int]] = []
    assert [one for one in check(dsns, on_step=lambda *step: steps.append(step)) if one.rule != "server"] == []
    assert steps[-1] == ("shards", 2, 2)
    assert ("ids of shard 1", 32, 32) in steps
    assert said(dsns[:1]) == []  # the first shard knows the other


QUEUED = "(select slot, id from queue_first order by id limit 3)"
ANSWERED = "(select slot, id from result_first order by id limit 3)"


@pytest.mark.parametrize(
    ("statement", "rule", "says", "repairable"),
    [
        (f"delete from queue_first where (slot, id) in {QUEUED}", "queues", "the queue of first lacks 3 rows", True),
        (f"insert into queue_first (slot, id) {ANSWERED[1:-1]}", "queues", "first holds 3 rows that are not due", True),
        (
            "insert into queue_first (slot, id) values (3, 'none')",
            "queues",
            "holds 1 rows that are not due, such",
            True,
        ),
        ("insert into queue_second (slot, id) select slot, id from queue_first", "queues", "second holds", True),
        ("update queue_first set priority = 2", "queues", "have a priority that no claim looks for", True),
        ("update queue_first set token = 5000", "queues", "token 5000 is in use", True),
        (
            f"insert into dead select 'first', slot, id, 1, '' from {ANSWERED} as a",
            "queues",
            "first gave up on 3 rows that it has answered",
            True,
        ),
        ("insert into result_first values (3, 'none', '{}')", "rows", "result_first holds 1 rows of ids", False),
        ("insert into dead values ('first', 3, 'none', 1, '')", "rows", "dead holds 1 rows of ids", False),
        (
            "update images set slot = (slot + 1) % 32 where id = (select min(id) from images)",
            "place",
            "belong elsewhere, such as '",
            False,
        ),
        ("insert into record_counts values (3, 'none')", "place", "record_counts holds 1 rows in slot 3", False),
        ("drop table result_second cascade", "tasks", "the table result_second is missing", False),
        ("create table result_stray (slot int, id text)", "tasks", "no task has the table result_stray", False),
        ("delete from task where name = 'second'", "tasks", "it lacks the tasks second", False),
        ("update task set after = '{}' where name = 'second'", "tasks", "its task second is", False),
        ("delete from record", "tasks", "it lacks the records counts", False),
        ("update migration set digest = 'x' where number = 2", "shards", "migration 2 (slots, members", False),
        ("delete from migration where number = 5", "shards", "migration 5 (pauses, priorities", False),
        ("insert into migration values (77, 'new', 'x')", "shards", "migration 77 is not of this package", False),
        ("update shard set krablet = gen_random_uuid()", "shards", "these are shards of 2 krablets", False),
        ("update shard set number = 5", "shards", "it was set up as shard 5", False),
        ("delete from slot_map where slot = 9", "shards", "its map has 63 slots, not 64", False),
        (
            "update slot_map set shard = 1 where slot = 9",
            "map",
            "slot 9 lives on shards [0, 1] in the same epoch",
            False,
        ),
        ("update slot_map set shard = 9, epoch = 8 where slot = 9", "map", "of which there is no DSN", False),
    ],
)
def test_a_planted_fault_is_found(
    dsns: tuple[str, ...], statement: str, rule: str, says: str, repairable: bool
) -> None:
    plant(dsns[0], statement)
    found = [one for one in check(dsns) if one.rule == rule]
    assert any(says in one.text for one in found), check(dsns)
    assert all("\n" not in one.text for one in found)
    if repairable:
        assert repair(dsns, found) == found
        assert said(dsns) == []


def test_rows_on_two_shards_are_told_from_rows_on_the_wrong_one(krablet: Krablet, dsns: tuple[str, ...]) -> None:
    there = next(f"{n}" for n in range(200) if krablet.router.shard(f"{n}") == 1)
    slot = krablet.router.slot(there)
    plant(dsns[0], f"insert into images values ({slot}, '{there}', 'b', '{{}}')")
    plant(dsns[0], f"insert into images values ({slot}, 'nowhere', 'b', '{{}}'), (900, 'no slot', 'b', '{{}}')")
    texts = [text for _, rule, text in said(dsns) if rule == "place"]
    assert f"images holds 2 rows of slot {slot}, which lives on shard 1; of the first 2, 1 are there too" in texts
    assert any("images holds 1 rows of slot 900, which does not exist" in text for text in texts)
    assert not any("rows of slot" in text for _, _, text in said(dsns, quick=True))


def test_a_shard_that_is_down_or_empty_is_said(dsns: tuple[str, ...], new_dsns: NewDsns) -> None:
    down = said([dsns[0], "host=127.0.0.1 port=1 dbname=none connect_timeout=1"])
    assert [one[:2] for one in down] == [("broken", "shards")]
    assert "does not answer" in down[0][2]
    assert any("the database is empty" in text for _, _, text in said([dsns[0], *new_dsns(1)]))


def test_a_move_that_was_cut_off_is_said_and_finished(krablet: Krablet, dsns: tuple[str, ...]) -> None:
    class CutError(Exception):
        pass

    def cut(moved: move.Moved) -> None:
        if moved.step == "handed over":
            raise CutError

    plant(*(dsns[:1]), "delete from record")
    plant(*(dsns[1:]), "delete from record")
    with pytest.raises(CutError):
        move.move(krablet, [4], 1, on_progress=cut)
    assert [level for level, _, text in said(dsns) if "on their way" in text] == ["warning"]
    repair(dsns, check(dsns))
    found = said(dsns)
    assert not any(rule == "map" or level == "broken" for level, rule, _ in found), found


def test_it_may_run_while_everybody_works(krablet: Krablet, dsns: tuple[str, ...]) -> None:
    ended = threading.Event()

    def work() -> None:
        with Krablet(dsns) as mine:
            for turn in range(1000):
                if ended.is_set():
                    return
                mine.add(Row(id=f"new/{turn}/{n}", blob="b") for n in range(5))
                for task in (FIRST, SECOND):
                    claims = mine.claim(task, "w", 20, 60)
                    mine.complete(task.name, {claim: Result(value={}) for claim in claims})

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(5):
            assert [one for one in said(dsns) if one[0] == "broken"] == []
    finally:
        ended.set()
        worker.join()


def test_what_endangers_a_server_is_said(dsns: tuple[str, ...]) -> None:
    shard = Shard(0, dsns[0], 5.0)
    with shard.connection() as connection:
        connection.execute("set synchronous_commit = off")
        texts = [one.text for one in warnings(connection, 0)]
        connection.execute("reset synchronous_commit")
    shard.close()
    assert any(text.startswith("synchronous_commit is off") for text in texts)
