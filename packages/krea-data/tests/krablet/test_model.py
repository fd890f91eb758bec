"""Random histories: the krablet and the table in memory answer alike at every step."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from krea_data.krablet import Krablet
from krea_data.krablet.dag import queue
from krea_data.memory import MemoryTable
from krea_data.rows import Claim, Result
from krea_data.testing import FakeTask, rows
from psycopg import sql

pytestmark = pytest.mark.postgres

TASKS = [
    FakeTask(name="a"),
    FakeTask(name="b"),
    FakeTask(name="c", after=("a", "b")),
    FakeTask(name="d", after=("c",)),
    FakeTask(name="e", after=("a",)),
]
IDS = [row.id for row in rows(4)]
FOREVER_S = 3000.0
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.integers(0, 4), st.sampled_from(["w", "v"])),
        st.tuples(st.just("complete"), st.integers(0, 30), st.sampled_from([None, None, "bad"])),
        st.tuples(st.just("fail"), st.integers(0, 30)),
        st.tuples(st.just("put"), st.sampled_from("abcde"), st.sampled_from(IDS), st.sampled_from([None, "bad"])),
        st.tuples(st.just("release"), st.sampled_from(["w", "v"]), st.booleans()),
        st.tuples(st.just("revive"), st.sampled_from("abcde")),
        st.tuples(st.just("elapse")),
        st.tuples(st.just("pause"), st.sampled_from("ac"), st.booleans()),
        st.tuples(st.just("prioritise"), st.sampled_from("abe"), st.sampled_from(IDS), st.integers(-2, 2)),
        st.tuples(st.just("extend"), st.integers(0, 30), st.sampled_from([1.0, FOREVER_S, 3 * FOREVER_S])),
    ),
    max_size=25,
)
Held = tuple[str, Claim, Claim]


class Pair:
    """One history on both tables."""

    def __init__(self, krablet: Krablet) -> None:
        self.now_s = 0.0
        options = {"max_attempts": 3, "retry_s": 100.0}
        self.memory = MemoryTable(rows(4), clock=lambda: self.now_s, **options)
        self.krablet = krablet
        krablet.max_attempts, krablet.retry_s = 3, 100.0
        krablet.add(rows(4))
        for table in (self.memory, self.krablet):
            table.register(TASKS)
        self.held: list[Held] = []

    def claim(self, number: int, worker: str) -> None:
        task = TASKS[number]
        sides = [
            {claim.id: claim for claim in table.claim(task, worker, 100_000, FOREVER_S / 3)}
            for table in (self.memory, self.krablet)
        ]
        assert sides[0].keys() == sides[1].keys()
        for row_id in sorted(sides[0]):
            mine, theirs = sides[0][row_id], sides[1][row_id]
            assert (mine.attempt, mine.row) == (theirs.attempt, theirs.row)
            self.held.append((task.name, mine, theirs))

    def complete(self, number: int, drop: str | None) -> None:
        if self.held:
            task, mine, theirs = self.held[number % len(self.held)]
            result = Result(value={"n": number}, drop=drop)
            assert self.memory.complete(task, {mine: result}) == self.krablet.complete(task, {theirs: result})

    def fail(self, number: int) -> None:
        if self.held:
            task, mine, theirs = self.held[number % len(self.held)]
            self.memory.fail(task, mine, f"error {number}")
            self.krablet.fail(task, theirs, f"error {number}")

    def put(self, task: str, row_id: str, drop: str | None) -> None:
        for table in (self.memory, self.krablet):
            table.put(task, {row_id: Result(drop=drop)})

    def release(self, worker: str, crashed: bool) -> None:
        assert self.memory.release(worker, crashed=crashed) == self.krablet.release(worker, crashed=crashed)

    def revive(self, task: str) -> None:
        assert self.memory.revive(task) == self.krablet.revive(task)

    def pause(self, task: str, pause: bool) -> None:
        for table in (self.memory, self.krablet):
            table.pause(task) if pause else table.resume(task)

    def prioritise(self, task: str, row_id: str, priority: int) -> None:
        changed = [table.prioritise(task, [row_id], priority) for table in (self.memory, self.krablet)]
        assert changed[0] == changed[1]

    def extend(self, number: int, lease_s: float) -> None:
        if self.held:
            task, mine, theirs = self.held[number % len(self.held)]
            assert self.memory.extend(task, [mine], lease_s) == self.krablet.extend(task, [theirs], lease_s)

    def elapse(self) -> None:
        self.now_s += FOREVER_S
        statement = sql.SQL(
            "update {} set run_at = run_at - interval '3000 s', held_until = held_until - interval '3000 s'"
        )
        for number in range(len(self.krablet.dsns)):
            for task in TASKS:
                self.krablet.guarded(number, lambda c, _, t=task.name: c.execute(statement.format(queue(t))))

    def check(self) -> None:
        assert self.memory.stats() == self.krablet.stats()
        assert list(self.memory.scan()) == list(self.krablet.scan())
        for task in "abcde":
            assert self.memory.dead(task) == self.krablet.dead(task)
            assert self.memory.pending(task) == self.krablet.pending(task)
            assert self.memory.due(task) == self.krablet.due(task)
            assert self.memory.backlog(task) == self.krablet.backlog(task)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_any_history_ends_alike(new_dsns: Callable[[int], list[str]], steps: list[tuple]) -> None:
    with Krablet(new_dsns(2), patience_s=20.0) as krablet:
        pair = Pair(krablet)
        for name, *arguments in steps:
            getattr(pair, name)(*arguments)
        pair.check()
