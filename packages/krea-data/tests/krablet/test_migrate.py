import threading
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest
from krea_data.krablet import Krablet, SchemaError
from krea_data.krablet.migrate import Migration, migrate, migrations

pytestmark = pytest.mark.postgres
LATER = Migration(number=2, title="one more", statements="create table extra (a int); insert into extra values (7)")


def test_steps_are_numbered_in_order() -> None:
    steps = migrations()
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.statements and step.title for step in steps)


def test_each_step_is_taken_once(new_dsns: Callable[[int], list[str]]) -> None:
    with psycopg.connect(new_dsns(1)[0], autocommit=True) as connection:
        assert (migrate(connection), migrate(connection)) == (1, 0)
        later = [*migrations(), LATER]
        assert (migrate(connection, later), migrate(connection, later)) == (1, 0)
        assert connection.execute("select a from extra").fetchall() == [(7,)]


def test_many_at_once_take_it_once(new_dsns: Callable[[int], list[str]]) -> None:
    dsn = new_dsns(1)[0]
    taken: list[int] = []

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            taken.append(migrate(connection))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0, 0, 0, 1]


def test_a_failing_step_leaves_nothing(new_dsns: Callable[[int], list[str]]) -> None:
    broken = replace(LATER, statements="create table half (a int); select 1 / 0")
    with psycopg.connect(new_dsns(1)[0], autocommit=True) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            migrate(connection, [*migrations(), broken])
        assert connection.execute("select to_regclass('half'), to_regclass('migration')").fetchone() == (None, None)


def test_a_newer_or_edited_database_is_left_alone(new_dsns: Callable[[int], list[str]]) -> None:
    with psycopg.connect(new_dsns(1)[0], autocommit=True) as connection:
        migrate(connection, [*migrations(), LATER])
        with pytest.raises(SchemaError, match="newer krea-data"):
            migrate(connection)
        with pytest.raises(SchemaError, match="differs"):
            migrate(connection, [*migrations(), replace(LATER, statements="select 1")])


def test_shards_are_not_taken_for_each_other(new_dsns: Callable[[int], list[str]]) -> None:
    dsns = new_dsns(2)
    Krablet(dsns).close()
    Krablet(dsns).close()
    for wrong in (dsns[::-1], dsns[:1]):
        with pytest.raises(SchemaError, match="in their order"):
            Krablet(wrong)
    with pytest.raises(SchemaError, match="bits"):
        Krablet(dsns, bits=7)
