"""The tests that every `Table` has to pass: subclass `TableContract` in a test module."""

from krea_data.contract_queue import LEASE_S, FullTable, QueueContract, refused
from krea_data.rows import Dead, Result, Row, Stats
from krea_data.testing import CrashingTask, FakeTask, rows
from krea_data.worker import run

__all__ = ["FullTable", "TableContract"]


class TableContract(QueueContract):
    """What every table does. A subclass in a test module gives the fixture `table`, empty, and `elapse`.

    The table must allow 3 attempts or more and wait for less than `LEASE_S` before another one.
    """

    def test_rows_come_back_in_order(self, table: FullTable) -> None:
        some = [Row(id=name, blob="0", meta={"n": name}) for name in ("b/2", "a/\U0001f34e", "b/10", "a/Z", "a/a")]
        assert table.add(some) == 5
        assert table.add(reversed([*some, Row(id="c", blob="1")])) == 1
        assert [row.id for row in table.scan()] == ["a/Z", "a/a", "a/\U0001f34e", "b/10", "b/2", "c"]
        assert [row.id for row in table.scan(limit=2)] == ["a/Z", "a/a"]
        assert next(table.scan()) == Row(id="a/Z", blob="0", meta={"n": "a/Z"})

    def test_a_claim_is_exclusive_until_its_lease_ends(self, table: FullTable) -> None:
        table.add(rows(30))
        task = FakeTask()
        first = self.claim(table, task, 20, "one")
        second = self.claim(table, task, 20, "two")
        assert (len(first), len(second)) == (20, 10)
        assert not first.keys() & second.keys()
        assert self.claim(table, task) == {}
        assert (table.pending("fake"), table.due("fake")) == (30, 0)
        self.elapse(table, 2 * LEASE_S)
        assert table.due("fake") == 30

    def test_a_lost_lease_is_refused(self, table: FullTable) -> None:
        table.add(rows(3))
        task = FakeTask()
        old = self.claim(table, task)
        self.elapse(table, 2 * LEASE_S)
        new = self.claim(table, task)
        assert [claim.attempt for claim in (*old.values(), *new.values())] == [1, 1, 1, 2, 2, 2]
        assert table.complete("fake", {claim: Result(value={"by": "old"}) for claim in old.values()}) == 0
        assert table.complete("fake", {claim: Result(value={"by": "new"}) for claim in new.values()}) == 3
        assert table.complete("fake", {claim: Result(value={"by": "again"}) for claim in new.values()}) == 0
        assert [row.results["fake"].value for row in table.scan()] == [{"by": "new"}] * 3

    def test_a_late_answer_counts_while_nobody_else_has_the_row(self, table: FullTable) -> None:
        table.add(rows(1))
        claims = self.claim(table, FakeTask())
        self.elapse(table, 2 * LEASE_S)
        assert table.complete("fake", {claim: Result() for claim in claims.values()}) == 1

    def test_rows_follow_the_dag(self, table: FullTable) -> None:
        table.add(rows(4))
        ids = [row.id for row in rows(4)]
        left, right = FakeTask(name="left"), FakeTask(name="right", after=("left",))
        both, last = FakeTask(name="both", after=("left", "right")), FakeTask(name="last", after=("both",))
        table.register([last, both, right, left])
        assert self.claim(table, right) == self.claim(table, both) == {}
        assert self.answer(table, left, drop=ids[:1]) == set(ids)
        assert self.claim(table, both) == {}
        assert self.answer(table, right, drop=ids[1:2]) == set(ids[1:])
        assert self.answer(table, both) == set(ids[2:])
        assert self.answer(table, last) == set(ids[2:])
        assert [row.id for row in table.scan(kept_by=["left"])] == ids[1:]
        assert [row.id for row in table.scan(kept_by=["left", "right"], limit=5)] == ids[2:]
        assert list(table.scan(kept_by=["unheard_of"])) == []
        assert [row.dropped for row in table.scan(limit=3)] == [("left", "bad"), ("right", "bad"), None]

    def test_a_task_that_comes_late_finds_its_rows(self, table: FullTable) -> None:
        table.add(rows(3))
        first = FakeTask(name="first")
        self.answer(table, first, drop=["synthetic/00001"])
        late = FakeTask(name="late", after=("first",))
        assert self.answer(table, late) == {"synthetic/00000", "synthetic/00002"}
        table.add(rows(4))
        self.answer(table, first)
        assert self.answer(table, late) == {"synthetic/00003"}

    def test_a_changed_dag_changes_what_is_due(self, table: FullTable) -> None:
        table.add(rows(2))
        table.register([FakeTask(name="late")])
        assert table.pending("late") == 2
        changed = FakeTask(name="late", after=("first",))
        table.register([changed])
        assert (table.pending("late"), self.claim(table, changed)) == (0, {})
        self.answer(table, FakeTask(name="first"))
        assert len(self.answer(table, changed)) == 2

    def test_put_answers_without_a_claim(self, table: FullTable) -> None:
        table.add(rows(3))
        first, late = FakeTask(name="first"), FakeTask(name="late", after=("first",))
        table.register([first, late])
        claims = self.claim(table, first)
        table.put("first", {"synthetic/00000": Result(value={"n": 1}), "synthetic/00001": Result(drop="twin")})
        assert table.complete("first", {claim: Result() for claim in claims.values()}) == 1
        held = self.claim(table, late)
        assert set(held) == {"synthetic/00000", "synthetic/00002"}
        table.put("first", {"synthetic/00002": Result(drop="twin"), "synthetic/00001": Result()})
        assert table.complete("late", {claim: Result() for claim in held.values()}) == 1
        assert self.answer(table, late) == {"synthetic/00001"}
        assert [row.results["first"].drop for row in table.scan()] == [None, None, "twin"]

    def test_put_needs_no_task(self, table: FullTable) -> None:
        table.add(rows(2))
        table.put("dedup", {"synthetic/00001": Result(drop="twin"), "synthetic/00000": Result()})
        assert [row.id for row in table.scan(kept_by=["dedup"])] == ["synthetic/00000"]
        assert self.answer(table, FakeTask(name="late", after=("dedup",))) == {"synthetic/00000"}

    def test_put_names_unknown_rows_and_stores_the_others(self, table: FullTable) -> None:
        table.add(rows(1))
        with refused("nobody"):
            table.put("dedup", {"nobody/0": Result(), "synthetic/00000": Result(value={"n": 1})})
        assert [row.results["dedup"].value for row in table.scan()] == [{"n": 1}]

    def test_a_failed_row_goes_to_the_end_and_dies_in_the_end(self, table: FullTable) -> None:
        table.add(rows(2))
        task = FakeTask()
        most = table.max_attempts or 0
        for attempt in range(1, most + 1):
            claims = self.claim(table, task)
            assert claims["synthetic/00000"].attempt == attempt
            table.fail("fake", claims["synthetic/00000"], f"error {attempt}")
            table.fail("fake", claims["synthetic/00000"], "held no more")
            if attempt == 1:
                table.complete("fake", {claims["synthetic/00001"]: Result()})
            assert table.due("fake") == 0
            assert table.pending("fake") == (attempt < most)
            self.elapse(table, LEASE_S)
        error = f"error {most}"
        assert table.dead("fake") == [Dead(id="synthetic/00000", error=error, attempts=most)]
        assert self.claim(table, task) == {}
        assert table.revive("fake") == 1
        assert self.claim(table, task)["synthetic/00000"].attempt == 1

    def test_an_answer_brings_a_dead_row_back(self, table: FullTable) -> None:
        table.add(rows(1))
        for _ in range(table.max_attempts or 0):
            table.fail("fake", self.claim(table, FakeTask())["synthetic/00000"], "no")
            self.elapse(table, LEASE_S)
        assert len(table.dead("fake")) == 1
        table.put("fake", {"synthetic/00000": Result()})
        assert (table.dead("fake"), table.revive("fake")) == ([], 0)

    def test_a_row_that_kills_workers_dies_alone(self, table: FullTable) -> None:
        table.add(rows(40))
        task, poison = FakeTask(), "synthetic/00017"
        table.register([task])
        crashes = 0
        while table.pending("fake"):
            claims = self.claim(table, task, 20)
            if poison in claims:
                crashes += 1
            else:
                table.complete("fake", {claim: Result() for claim in claims.values()})
            if poison in claims or not claims:
                self.elapse(table, 2 * LEASE_S)
        assert crashes == table.max_attempts
        assert [dead.id for dead in table.dead("fake")] == [poison]
        assert "vanished" in table.dead("fake")[0].error
        assert table.stats()["fake"] == Stats(done=39, kept=39, dead=1)

    def test_release_ends_leases(self, table: FullTable) -> None:
        table.add(rows(6))
        task = FakeTask()
        mine, yours = self.claim(table, task, 4, "me"), self.claim(table, task, 4, "you")
        assert (table.release("me"), table.release("me"), table.release("nobody")) == (4, 0, 0)
        again = self.claim(table, task)
        assert again.keys() == mine.keys()
        assert {claim.attempt for claim in again.values()} == {1}
        assert table.complete("fake", {claim: Result() for claim in mine.values()}) == 0
        assert table.release("you", crashed=True) == 2
        assert {claim.attempt for claim in self.claim(table, task).values()} == {2}
        assert table.complete("fake", {claim: Result() for claim in yours.values()}) == 0

    def test_stats_count_everything(self, table: FullTable) -> None:
        table.add(rows(9))
        first, late = FakeTask(name="first"), FakeTask(name="late", after=("first",))
        table.register([first, late])
        claims = list(self.claim(table, first, 6).values())
        table.complete(
            "first", {claim: Result(drop=(None, "dark", "twin")[n % 3]) for n, claim in enumerate(claims[:5])}
        )
        table.put("other", {"synthetic/00000": Result()})
        assert table.stats() == {
            "first": Stats(done=5, kept=2, dropped={"dark": 2, "twin": 1}, queued=3, leased=1),
            "late": Stats(queued=2),
            "other": Stats(done=1, kept=1),
        }

    def test_tasks_see_what_others_found(self, table: FullTable) -> None:
        table.add(rows(1))
        table.put("zebra", {"synthetic/00000": Result(value={"n": 1})})
        self.answer(table, FakeTask(name="first"))
        table.put("apple", {"synthetic/00000": Result(value={"n": 2}, drop="old")})
        (claim,) = self.claim(table, FakeTask(name="late", after=("first",))).values()
        assert list(claim.row.results) == ["zebra", "first", "apple"]
        assert claim.row.results["apple"] == Result(value={"n": 2}, drop="old")
        assert claim.row.meta == rows(1)[0].meta
        table.put("zebra", {"synthetic/00000": Result(value={"n": 3})})
        assert list(next(table.scan()).results) == ["first", "apple", "zebra"]

    def test_values_come_back_as_json(self, table: FullTable) -> None:
        value = {
            "list": (1, 2.5, -0.0, None, True),
            "text": '\u00e4\U0001f34e"\\ \\u0000 {}',
            "deep": {"a": {"b": []}},
            7: 1.5e-7,
        }
        table.add([Row(id="one", blob="0", meta=value)])  # type: ignore[arg-type]
        table.put("first", {"one": Result(value=value)})  # type: ignore[arg-type]
        wanted = {"list": [1, 2.5, 0.0, None, True], "text": value["text"], "deep": {"a": {"b": []}}, "7": 1.5e-7}
        (row,) = table.scan()
        assert row.meta == row.results["first"].value == wanted

    def test_what_cannot_be_stored_is_refused_whole(self, table: FullTable) -> None:
        table.add(rows(2))
        claims = [claim for _, claim in sorted(self.claim(table, FakeTask()).items())]
        bad: list[object] = [float("nan"), b"bytes", "nul \0", "\ud800", {1, 2}]
        for value in bad:
            results = [Result(), Result(value={"v": value})]
            with refused("synthetic/00001"):
                table.complete("fake", dict(zip(claims, results, strict=True)))
            with refused("synthetic/00001"):
                table.put("fake", dict(zip(("synthetic/00000", "synthetic/00001"), results, strict=True)))
            with refused("new/1"):
                table.add([Row(id="new/0", blob=""), Row(id="new/1", blob="", meta={"v": value})])
        with refused("reason"):
            table.put("fake", {"synthetic/00000": Result(drop="")})
        with refused("row id"):
            table.add([Row(id="", blob="0")])
        assert (table.stats()["fake"].done, len(list(table.scan()))) == (0, 2)
        assert table.complete("fake", {claim: Result() for claim in claims}) == 2

    def test_bad_arguments_are_named(self, table: FullTable) -> None:
        with refused("Bad-Name"):
            table.register([FakeTask(name="Bad-Name")])
        with refused("circle"):
            table.register([FakeTask(name="a", after=("b",)), FakeTask(name="b", after=("a",))])
        with refused("limit 0"):
            table.claim(FakeTask(), "w", 0, 1.0)
        with refused("lease_s 0"):
            table.claim(FakeTask(), "w", 1, 0.0)
        assert table.stats() == {}

    def test_a_worker_finishes_around_a_poison_row(self, table: FullTable) -> None:
        table.add(rows(25))
        table.max_attempts, table.retry_s = 3, 0.001
        task, late = CrashingTask(poison=frozenset({"synthetic/00011"})), FakeTask(name="late", after=("fake",))
        totals = run(table, [late, task], worker="w", batch=8)
        assert (totals["fake"].kept, totals["fake"].failed, totals["late"].kept) == (24, 3, 24)
        assert [(dead.id, dead.error) for dead in table.dead("fake")] == [
            ("synthetic/00011", "RuntimeError: cannot work on synthetic/00011")
        ]
        assert len(list(table.scan(kept_by=["late"]))) == 24
