import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

import psycopg
import pytest
from krea_data.krablet import Krablet, KrabletError, ShardDown
from krea_data.krablet.connection import make_conninfo
from krea_data.krablet.moves.clone import moving_tables
from krea_data.krablet.moves.move import Moved, add_shard, cancel, move, rebalance, resume
from krea_data.krablet.moves.transfer import take_notes
from krea_data.rows import Claim, Result
from krea_data.testing import FakeTask, rows
from psycopg import sql

pytestmark = pytest.mark.postgres
NewDsns = Callable[[int], list[str]]
FIRST, LATE = FakeTask(name="first"), FakeTask(name="late", after=("first",))
STEPS = ["begun", "copied", "caught up", "handed over", "purged"]


def contents(dsn: str, *, served: bool = True) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a shard that belong to slots, by table; what is not served is left out."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = {}
        for shape in moving_tables(connection):
            if shape.name in ("tracked_slot", "slot_mark"):  # which a slot gets when it begins to move
                continue
            columns = sql.SQL(", ").join(map(sql.Identifier, shape.written))
            where = sql.SQL("where slot not in (select slot from away)" if served else "")
            statement = sql.SQL("select row({})::text from {} {}")  # as text: Python's times have no "-infinity"
            statement = statement.format(columns, sql.Identifier(shape.name), where)
            found[shape.name] = connection.execute(statement).fetchall()
        return found


def everything(krablet: Krablet) -> dict[str, list[tuple[Any, ...]]]:
    """The same of all shards together."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for dsn in krablet.dsns:
        for name, lines in contents(dsn).items():
            found.setdefault(name, []).extend(lines)
    return {name: sorted(lines, key=repr) for name, lines in found.items()}


def at_rest(krablet: Krablet) -> None:
    """Nothing is left of a move, and every row lies where the map says."""
    assert krablet.pending("nothing") == 0, "which asks all shards, and so hears of moves"
    for number, dsn in enumerate(krablet.dsns):
        with psycopg.connect(dsn, autocommit=True) as connection:
            for table in ("away", "outgoing", "change"):
                assert connection.execute(sql.SQL("select * from {}").format(sql.Identifier(table))).fetchall() == []
            notes = "select count(*) from pg_trigger t join pg_class c on c.oid = t.tgrelid where tgname like 'note%%'"
            mine = connection.execute(f"{notes} and c.relnamespace = current_schema()::regnamespace").fetchone()
            assert mine == (0,)
            (stray,) = connection.execute(
                "select count(*) from images where not slot = any(%s)", (krablet.router.held(number),)
            ).fetchone() or (None,)
            assert stray == 0


@pytest.fixture
def filled(new_dsns: NewDsns) -> Iterator[Krablet]:
    """A krablet of two shards in which rows stand in every way."""
    with Krablet(new_dsns(2), max_attempts=2, retry_s=0.001, patience_s=20.0, bits=4) as krablet:
        krablet.add(rows(120))
        krablet.register([FIRST, LATE])
        done = krablet.claim(FIRST, "w", 40, 1000.0)
        krablet.complete("first", {claim: Result(drop="bad" if n % 4 == 0 else None) for n, claim in enumerate(done)})
        krablet.put("score", {row.id: Result(value={"n": n}) for n, row in enumerate(rows(60))})
        for _ in range(2):
            for claim in krablet.claim(LATE, "w", 5, 1000.0):
                krablet.fail("late", claim, "it breaks")
                time.sleep(0.003)
        krablet.claim(FIRST, "w", 10, 1000.0)
        yield krablet


def test_a_moved_slot_has_all_it_had(filled: Krablet, new_dsns: NewDsns) -> None:
    held = filled.claim(FIRST, "w", 20, 1000.0)
    before, scanned, stats = everything(filled), list(filled.scan()), filled.stats()
    assert all(before[name] for name in ("images", "result_first", "queue_first", "queue_late", "result_score"))
    assert add_shard(filled, new_dsns(1)[0]) == 2
    assert rebalance(filled) == 5
    assert sorted(len(filled.router.held(number)) for number in range(3)) == [5, 5, 6]
    assert everything(filled) == before
    assert list(filled.scan()) == scanned
    assert filled.stats() == stats
    at_rest(filled)
    assert filled.complete("first", dict.fromkeys(held, Result())) == len(held), "leases go along"
    assert rebalance(filled) == 0


def test_a_token_is_not_given_out_twice(new_dsns: NewDsns) -> None:
    """A late answer to the lease of the old shard must not be taken for one to a lease of the new one."""
    with Krablet(new_dsns(2), patience_s=20.0, bits=2, max_attempts=None) as krablet:
        krablet.add(rows(40))
        old: list[Claim] = []
        for _ in range(30):
            old += krablet.claim(FIRST, "w", 40, 1000.0)
            krablet.release("w")
        move(krablet, [0, 1], 1)
        new = {claim.id: claim for claim in krablet.claim(FIRST, "v", 1000, 1000.0)}
        assert len(new) == 40
        assert not {(claim.id, claim.token) for claim in old} & {(claim.id, claim.token) for claim in new.values()}


@pytest.mark.parametrize("step", STEPS)
def test_a_mover_that_is_stopped_is_followed_by_another(filled: Krablet, step: str) -> None:
    before, scanned = everything(filled), list(filled.scan())

    def stop(moved: Moved) -> None:
        if moved.step == step:
            raise KeyboardInterrupt

    slots = filled.router.held(0)[:3]
    with pytest.raises(KeyboardInterrupt):
        move(filled, slots, 1, on_progress=stop, page_rows=2)
    assert list(filled.scan()) == scanned
    with Krablet(filled.dsns, patience_s=20.0) as other:
        assert list(other.scan()) == scanned
        assert everything(filled) == before
        others = rows(200)[120:]
        assert other.add(others) == len(others)
        assert move(other, slots, 1) + resume(other) <= 3
        assert set(slots) <= set(other.router.held(1))
        at_rest(other)
        assert [row.id for row in other.scan()] == [row.id for row in rows(200)]
    assert [row.id for row in filled.scan()] == [row.id for row in rows(200)], "who was there before finds out"


def test_notes_are_ended_after_a_mover_that_died_behind_its_last_slot(filled: Krablet) -> None:
    with psycopg.connect(filled.dsns[0], autocommit=True) as connection:
        take_notes(connection, moving_tables(connection))
        assert connection.execute("select from pg_trigger where tgname = 'note_update'").rowcount > 1
    assert move(filled, filled.router.held(0), 0) == 0
    at_rest(filled)


def test_a_cancelled_slot_stays(filled: Krablet) -> None:
    before, slot = everything(filled), filled.router.held(0)[0]

    def stop(moved: Moved) -> None:
        if moved.step == "copied":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move(filled, [slot], 1, on_progress=stop)
    assert (cancel(filled), cancel(filled)) == (1, 0)
    resume(filled)
    at_rest(filled)
    assert everything(filled) == before
    assert move(filled, [slot], 1) == 1
    assert everything(filled) == before


def test_of_two_movers_one_gives_way(filled: Krablet) -> None:
    slot = filled.router.held(0)[0]

    def take_over(moved: Moved) -> None:
        if moved.step == "begun":
            with Krablet(filled.dsns, patience_s=20.0) as other:
                move(other, [slot], 1)

    with pytest.raises(KrabletError, match=f"another process moves slot {slot}"):
        move(filled, [slot], 1, on_progress=take_over)
    at_rest(filled)


def test_a_task_that_comes_during_a_move_goes_along(filled: Krablet) -> None:
    new = FakeTask(name="new", after=("first",))
    slot = filled.router.held(0)[0]

    def declare(moved: Moved) -> None:
        if moved.step == "caught up" and "new" not in filled.shards.view.dags[0].queued:
            with Krablet(filled.dsns, patience_s=20.0) as other:
                other.register([new])

    kept = len(list(filled.scan(kept_by=["first"])))
    move(filled, [slot], 1, on_progress=declare)
    filled.register([new])
    assert filled.pending("new") == kept
    at_rest(filled)


def test_bad_moves_are_named(filled: Krablet) -> None:
    with pytest.raises(ValueError, match="no shard 7"):
        move(filled, [0], 7)
    with pytest.raises(ValueError, match="slot 64 is not between 0 and 15"):
        move(filled, [64], 1)


class Load:
    """Threads that add, claim, complete, put and scan until they are told to stop."""

    def __init__(self, dsns: list[str]) -> None:
        self.krablet = Krablet(dsns, patience_s=20.0, bits=3)
        self.stop = threading.Event()
        self.added: list[str] = []
        self.stored: Counter[str] = Counter()
        self.put: dict[str, int] = {}
        self.errors: list[BaseException] = []
        self.scans = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        works = (self.add, self.work, self.work, self.write, self.scan)
        threads = [threading.Thread(target=self.guard, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()
        if self.errors:
            raise self.errors[0]

    def guard(self, work: Callable[[], None]) -> None:
        try:
            while not self.stop.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 - raised where the test sees it
            self.errors.append(error)
            self.stop.set()

    def add(self) -> None:
        start = len(self.added)
        part = rows(start + 20)[start:]
        assert self.krablet.add(part) == 20
        self.added += [row.id for row in part]
        time.sleep(0.05)

    def work(self) -> None:
        for task in (FIRST, LATE):
            claims = self.krablet.claim(task, threading.current_thread().name, 7, 1000.0)
            if self.krablet.complete(task.name, {c: Result(value={"token": c.token}) for c in claims}) != len(claims):
                raise AssertionError("a lease was lost")
            self.stored.update(f"{task.name} {claim.id}" for claim in claims)

    def write(self) -> None:
        if self.added:
            step = len(self.put)
            ids = random.sample(self.added, min(10, len(self.added)))
            self.krablet.put("score", {row_id: Result(value={"step": step}) for row_id in ids})
            self.put.update(dict.fromkeys(ids, step))
            found = {row.id: row.results["score"].value["step"] for row in self.krablet.scan(kept_by=["score"])}
            assert all(found[row_id] == step for row_id, step in self.put.items()), "a put was lost"

    def scan(self) -> None:
        known = list(self.added)
        found = [row.id for row in self.krablet.scan()]
        assert found == sorted(set(found)), "a row came twice"
        assert set(known) <= set(found), "a row was missed"
        self.scans += 1


def test_slots_move_while_everybody_works(new_dsns: NewDsns) -> None:
    dsns = new_dsns(2)
    load = Load(dsns)
    with load.krablet, Krablet(dsns, patience_s=20.0) as mover:
        mover.register([FIRST, LATE])
        with load.running():
            add_shard(mover, new_dsns(1)[0])
            assert rebalance(mover) == 2
            move(mover, mover.router.held(2)[:1], 0)
        at_rest(mover)
        assert load.scans > 0
        while any(pending := [load.krablet.pending(task.name) for task in (FIRST, LATE)]):
            load.work()
        assert pending == [0, 0]
        assert [row.id for row in load.krablet.scan(kept_by=["first", "late"])] == load.added
        assert set(load.stored) == {f"{task.name} {row_id}" for task in (FIRST, LATE) for row_id in load.added}
        assert set(load.stored.values()) == {1}, "a row was worked on twice"


def test_a_shard_that_is_down_keeps_only_its_own_keys(new_dsns: NewDsns) -> None:
    """One shard's DSN is made to lead nowhere, as if its machine were gone."""
    dsns = new_dsns(2)
    with Krablet(dsns, patience_s=20.0) as krablet:
        krablet.add(rows(40))
        krablet.register([FIRST])
    down = make_conninfo(dsns[1], host="/nowhere")
    with Krablet([dsns[0], down], patience_s=0.1) as krablet:
        mine = [row.id for row in rows(40) if krablet.router.shard(row.id) == 0]
        theirs = [row.id for row in rows(40) if krablet.router.shard(row.id) == 1]
        claims = krablet.claim(FIRST, "w", 40, 1000.0)
        assert sorted(claim.id for claim in claims) == mine
        assert krablet.claim(FIRST, "w", 40, 1000.0) == []
        assert krablet.complete("first", dict.fromkeys(claims[1:], Result())) == len(mine) - 1
        lost = Claim(row=rows(1)[0], token=1, id=theirs[0])
        for work in (
            lambda: krablet.complete("first", {claims[0]: Result(), lost: Result()}),
            lambda: krablet.put("first", dict.fromkeys([mine[1], theirs[0]], Result(value={"n": 2}))),
            lambda: krablet.add(rows(60)),
            lambda: krablet.fail("first", lost, "x"),
            lambda: krablet.pending("first"),
            lambda: list(krablet.scan()),
        ):
            with pytest.raises(ShardDown, match=r"shard 1 \(host=/nowhere .*\) does not answer"):
                work()
    with Krablet(dsns, patience_s=20.0) as krablet:
        found = {row.id: row.results["first"].value for row in krablet.scan(kept_by=["first"])}
        assert set(found) == set(mine), "what belongs to the other shard was stored all the same"
        assert found[mine[1]] == {"n": 2}
        assert {row.id for row in krablet.scan()} > {row.id for row in rows(40)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_mover_may_be_killed_at_any_moment(filled: Krablet, spawn: Callable[..., "Popen[str]"], seed: int) -> None:
    before, scanned = everything(filled), list(filled.scan())
    chance, slots = random.Random(seed), filled.router.held(0)[:-2]
    for _ in range(5):
        mover = spawn("move", dsns=list(filled.dsns), to=1, slots=slots)
        assert mover.stdout is not None
        mover.stdout.readline()
        time.sleep(chance.uniform(0, 0.7))
        mover.kill()
        mover.wait()
        assert list(filled.scan()) == scanned
        assert everything(filled) == before
    move(filled, slots, 1)
    at_rest(filled)
    assert everything(filled) == before
