"""The part of the contract that is about the controls of queues; `krea_data.contract` holds the rest."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from krea_data.interfaces import Controls, Task, WorkTable
from krea_data.rows import Claim, Dead, Result, Row, Stats
from krea_data.testing import FakeTask, rows

__all__ = ["LEASE_S", "FullTable", "QueueContract", "TypedFake", "refused"]

LEASE_S = 1000.0


class FullTable(WorkTable, Controls, Protocol):
    """What both tables offer beyond what a worker needs."""

    max_attempts: int | None
    retry_s: float

    def add(self, rows: Iterable[Row]) -> int: ...

    def due(self, task: str) -> int: ...

    def dead(self, task: str) -> list[Dead]: ...

    def revive(self, task: str) -> int: ...

    def stats(self) -> dict[str, Stats]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TypedFake(FakeTask):
    """A fake task that says more about itself."""

    columns: Mapping[str, type] = field(default_factory=dict)
    indexed: tuple[str, ...] = ()
    reads: tuple[str, ...] | None = None


class QueueContract(ABC):
    """Pauses, priorities, longer leases, typed values. A subclass gives the fixture `table`, empty, and `elapse`."""

    @abstractmethod
    def elapse(self, table: Any, seconds: float) -> None:
        """Let the table believe that so much time has passed."""

    def claim(self, table: FullTable, task: Task, limit: int = 1000, worker: str = "w") -> dict[str, Claim]:
        """Claimed rows by id."""
        return {claim.id: claim for claim in table.claim(task, worker, limit, LEASE_S)}

    def answer(self, table: FullTable, task: Task, drop: Iterable[str] = ()) -> set[str]:
        """Claim everything that is due, drop some, keep the others, and return the ids."""
        claims = self.claim(table, task)
        reasons = dict.fromkeys(drop, "bad")
        assert table.complete(task.name, {c: Result(drop=reasons.get(c.id)) for c in claims.values()}) == len(claims)
        return set(claims)

    def test_a_paused_task_gives_no_claims_and_keeps_its_rows(self, table: FullTable) -> None:
        table.add(rows(3))
        task, other = FakeTask(), FakeTask(name="other")
        table.register([task, other])
        (held,) = self.claim(table, task, 1).values()
        table.pause("fake")
        table.pause("fake")
        assert (self.claim(table, task), len(self.claim(table, other))) == ({}, 3)
        table.add(rows(5))
        assert table.complete("fake", {held: Result()}) == 1
        assert (table.pending("fake"), table.backlog("fake"), table.due("fake")) == (4, 4, 4)
        table.resume("fake")
        assert len(self.claim(table, task)) == 4
        for control in (table.pause, table.resume):
            with refused("unheard_of"):
                control("unheard_of")

    def test_rows_with_priority_come_first(self, table: FullTable) -> None:
        table.add(rows(8))
        task = FakeTask()
        table.register([task])
        ids = [row.id for row in rows(8)]
        assert table.prioritise("fake", [ids[5], ids[6], "unheard/of"], 2) == 2
        assert table.prioritise("fake", [ids[6]], 2) == 0
        assert table.prioritise("fake", [ids[7]], 9) == 1
        assert table.prioritise("fake", [ids[0]], -1) == 1
        assert table.prioritise("unheard_of", ids, 1) == 0
        first = self.claim(table, task, 1)
        assert first.keys() == {ids[7]}
        assert self.claim(table, task, 2).keys() == {ids[5], ids[6]}
        assert table.prioritise("fake", [ids[7]], 3) == 1  # a leased row keeps its lease
        assert self.claim(table, task, 4).keys() == set(ids[1:5])
        assert table.complete("fake", dict.fromkeys(first.values(), Result())) == 1
        assert self.claim(table, task).keys() == {ids[0]}
        for bad in (10, -10, 1.0, True):
            with refused(f"priority {bad!r}"):
                table.prioritise("fake", ids, bad)  # type: ignore[arg-type]

    def test_a_priority_outlasts_a_failure_but_not_an_answer(self, table: FullTable) -> None:
        table.add(rows(3))
        task = FakeTask()
        table.register([task])
        last = rows(3)[-1].id
        table.prioritise("fake", [last], 1)
        table.fail("fake", self.claim(table, task, 1)[last], "once")
        self.elapse(table, 2 * LEASE_S)
        again = self.claim(table, task, 1)
        assert again.keys() == {last}
        self.elapse(table, 2 * LEASE_S)
        assert self.claim(table, task, 1).keys() == {last}
        table.put("fake", {last: Result()})
        assert self.claim(table, task, 5).keys() == {row.id for row in rows(2)}

    def test_a_lease_can_be_extended_while_it_is_held(self, table: FullTable) -> None:
        table.add(rows(4))
        task = FakeTask()
        claims = list(self.claim(table, task).values())
        assert table.complete("fake", {claims[0]: Result()}) == 1
        assert table.extend("fake", claims, 3 * LEASE_S) == 3
        assert table.extend("fake", claims, 1.0) == 3  # never shorter
        assert table.extend("unheard_of", claims, 1.0) == 0
        self.elapse(table, 2 * LEASE_S)
        assert self.claim(table, task) == {}
        self.elapse(table, 2 * LEASE_S)
        assert len(self.claim(table, task, 1)) == 1
        assert table.extend("fake", claims, LEASE_S) == 2
        with refused("lease_s 0"):
            table.extend("fake", claims, 0.0)

    def test_without_a_last_attempt_no_row_is_given_up(self, table: FullTable) -> None:
        table.add(rows(2))
        table.max_attempts, table.retry_s = None, 1e-9
        task = FakeTask()
        for _ in range(12):
            for claim in self.claim(table, task, 1).values():
                table.fail("fake", claim, "again")
            self.elapse(table, 2 * LEASE_S)
        for _ in range(8):
            self.claim(table, task)
            self.elapse(table, 2 * LEASE_S)
        assert (table.dead("fake"), table.pending("fake")) == ([], 2)
        assert sum(claim.attempt for claim in self.claim(table, task, 1).values()) >= 10

    def test_values_keep_to_the_types_of_their_columns(self, table: FullTable) -> None:
        table.add(rows(3))
        task = TypedFake(columns={"score": float, "words": int, "language": str, "sharp": bool}, indexed=("score",))
        claims = list(self.claim(table, task).values())
        good = [
            {"score": 0.5, "words": -(1 << 63), "language": "\u00e4", "sharp": True, "other": [1]},
            {"score": 3, "words": None},
            {},
        ]
        bad = [{"score": "0.5"}, {"score": True}, {"score": 10**400}, {"words": 1.0}, {"words": 1 << 63}]
        for value in [*bad, {"words": False}, {"language": 5}, {"sharp": 1}, {"sharp": "true"}]:
            (name,) = value
            with refused(f"has {name} = "):
                table.complete("fake", {claims[0]: Result(), claims[1]: Result(value=value)})
            with refused("synthetic/00001"):
                table.put("fake", {"synthetic/00001": Result(value=value)})
        answers = {claim: Result(value=value) for claim, value in zip(claims, good, strict=True)}
        assert table.complete("fake", answers) == 3
        table.register([TypedFake(columns={"score": str, "new": int})])  # a changed column, and one more
        table.put("fake", {"synthetic/00001": Result(value={"score": "low", "new": 1, "words": 2})})
        with refused("has words = "):
            table.put("fake", {"synthetic/00001": Result(value={"words": "two"})})
        for columns, indexed, word in (({"a": list}, (), "list"), ({"A": int}, (), "'A'"), ({"a": int}, ("b",), "'b'")):
            with refused(word):
                table.register([TypedFake(columns=columns, indexed=indexed)])

    def test_a_task_sees_only_what_it_reads(self, table: FullTable) -> None:
        table.add(rows(1))
        for name in ("first", "second"):
            table.put(name, {"synthetic/00000": Result(value={"by": name})})
        (claim,) = self.claim(table, TypedFake(reads=("second",))).values()
        assert claim.row.results == {"second": Result(value={"by": "second"})}
        (claim,) = self.claim(table, TypedFake(name="none", reads=())).values()
        assert claim.row.results == {}


@contextmanager
def refused(word: str) -> Iterator[None]:
    """Expect a ValueError that names this."""
    said = "nothing was refused"
    try:
        yield
    except ValueError as error:
        said = str(error)
    assert word in said, f"{word!r} is not in {said!r}"
