import pytest
from krea_data.contract import TableContract
from krea_data.krablet import Krablet
from krea_data.krablet.dag import queue
from psycopg import sql

pytestmark = pytest.mark.postgres


def shift(krablet: Krablet, seconds: float) -> None:
    """Move all queues into the past."""
    statement = sql.SQL("update {} set run_at = run_at - make_interval(secs => {})")
    for number in range(len(krablet.dsns)):
        for task in krablet.guarded(number, lambda c, dag: dag).queued:
            krablet.guarded(number, lambda c, _, t=task: c.execute(statement.format(queue(t), sql.Literal(seconds))))


class TestKrablet(TableContract):
    @pytest.fixture
    def table(self, krablet: Krablet) -> Krablet:
        return krablet

    def elapse(self, table: Krablet, seconds: float) -> None:
        shift(table, seconds)
