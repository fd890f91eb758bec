import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from krea_data.contract import TableContract
from krea_data.krablet import Krablet
from krea_data.krablet.dag import queue
from krea_data.rows import Result
from krea_data.testing import FakeTask, rows
from psycopg import sql

pytestmark = pytest.mark.postgres


def shift(krablet: Krablet, seconds: float) -> None:
    """Move all queues into the past."""
    statement = sql.SQL(
        "update {0} set run_at = run_at - make_interval(secs => {1}),"
        " held_until = held_until - make_interval(secs => {1})"
    )
    for number in range(len(krablet.dsns)):
        for task in krablet.guarded(number, lambda c, dag: dag).queued:
            krablet.guarded(number, lambda c, _, t=task: c.execute(statement.format(queue(t), sql.Literal(seconds))))


class TestKrablet(TableContract):
    @pytest.fixture
    def table(self, krablet: Krablet) -> Krablet:
        return krablet

    def elapse(self, table: Krablet, seconds: float) -> None:
        shift(table, seconds)


def together(*works: Callable[[], None]) -> None:
    """Do these at the same moment, in threads."""
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


def test_the_last_two_answers_at_once_still_meet(krablet: Krablet) -> None:
    """Each transaction misses the other's answer unless they wait for each other."""
    left, right = FakeTask(name="left"), FakeTask(name="right")
    krablet.add(rows(60))
    krablet.register([left, right, FakeTask(name="both", after=("left", "right"))])
    barrier = threading.Barrier(2)

    def work(task: FakeTask) -> None:
        for _ in range(30):
            claims = krablet.claim(task, task.name, 2, 1000.0)
            barrier.wait(30)
            krablet.complete(task.name, dict.fromkeys(claims, Result()))

    together(lambda: work(left), lambda: work(right))
    assert krablet.pending("both") == 60


def test_a_task_that_comes_while_others_write_misses_no_row(new_dsns: Callable[[int], list[str]]) -> None:
    first = FakeTask(name="first")
    dsns = new_dsns(1)
    with Krablet(dsns, patience_s=20.0) as one, Krablet(dsns, patience_s=20.0) as two:
        one.register([first])

        def write() -> None:
            for start in range(0, 200, 10):
                one.add(rows(200)[start : start + 10])
                one.complete("first", dict.fromkeys(one.claim(first, "w", 10, 1000.0), Result()))

        def declare() -> None:
            for number in range(6):
                two.register([FakeTask(name=f"root{number}"), FakeTask(name=f"late{number}", after=("first",))])

        together(write, declare)
        assert [one.pending(f"root{number}") for number in range(6)] == [200] * 6
        assert [one.pending(f"late{number}") for number in range(6)] == [200] * 6


def test_a_big_page_is_read_in_parts(krablet: Krablet) -> None:
    krablet.add(rows(2500))
    assert [row.id for row in krablet.scan()] == [row.id for row in rows(2500)]
    assert [row.id for row in krablet.scan(limit=1500)] == [row.id for row in rows(1500)]
