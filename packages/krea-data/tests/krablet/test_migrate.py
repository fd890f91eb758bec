import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
from krea_data.krablet import Krablet, SchemaError
from krea_data.krablet.migrate import Migration, migrate, migrations
from krea_data.krablet.router import even
from krea_data.testing import rows

pytestmark = pytest.mark.postgres
LATER = Migration(number=999, title="one more", statements="create table extra (a int); insert into extra values (7)")


def test_steps_are_numbered_in_order() -> None:
    steps = migrations()
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.statements and step.title for step in steps)


def test_each_step_is_taken_once(new_dsns: Callable[[int], list[str]]) -> None:
    with psycopg.connect(new_dsns(1)[0], autocommit=True) as connection:
        assert (migrate(connection), migrate(connection)) == (len(migrations()), 0)
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
    assert sorted(taken) == [0, 0, 0, len(migrations())]


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


def test_a_krablet_from_before_slots_could_move_goes_on(new_dsns: Callable[[int], list[str]]) -> None:
    dsns = new_dsns(2)
    for number, dsn in enumerate(dsns):
        with psycopg.connect(dsn, autocommit=True) as connection:
            migrate(connection, migrations()[:1])
            connection.execute("insert into shard (number, shards, bits) values (%s, 2, 6)", (number,))
            id_ = next(row.id for row in rows(20) if even(2).shard(row.id) == number)
            insert = "insert into images (slot, id, blob, meta) values (%s, %s, '', '{}')"
            connection.execute(insert, (even(2).slot(id_), id_))
    with Krablet(dsns) as krablet:
        assert krablet.router == even(2)
        assert krablet.add(rows(20)) == 18
        assert len(list(krablet.scan())) == 20
    with pytest.raises(SchemaError, match="another krablet"):
        Krablet([dsns[0], *new_krablet(new_dsns)])


def new_krablet(new_dsns: Callable[[int], list[str]]) -> list[str]:
    """The second shard of a krablet of two."""
    dsns = new_dsns(2)
    Krablet(dsns).close()
    return dsns[1:]


def test_shards_are_not_taken_for_each_other(new_dsns: Callable[[int], list[str]]) -> None:
    dsns = new_dsns(2)
    Krablet(dsns).close()
    Krablet(dsns).close()
    for wrong in (dsns[::-1], dsns[1:]):
        with pytest.raises(SchemaError, match="in their order"):
            Krablet(wrong)
    with pytest.raises(SchemaError, match="bits"):
        Krablet(dsns, bits=7)
    with pytest.raises(ValueError, match="given twice"):
        Krablet([dsns[0], dsns[0]])
    with Krablet(dsns[:1]) as krablet:
        assert krablet.dsns == tuple(dsns), "a shard knows the others"


def test_a_shard_that_lost_its_data_is_not_taken_for_a_new_one(new_dsns: Callable[[int], list[str]]) -> None:
    dsns = new_dsns(2)
    Krablet(dsns).close()
    with pytest.raises(SchemaError, match=r"shard 1 .* is empty and should hold data"):
        Krablet([dsns[0], *new_dsns(1)])


def test_many_may_open_a_new_krablet_at_once(new_dsns: Callable[[int], list[str]]) -> None:
    for _ in range(3):
        dsns = new_dsns(3)
        with ThreadPoolExecutor(4) as pool:
            for krablet in pool.map(lambda _, d=dsns: Krablet(d), range(4)):
                assert krablet.router == even(3)
                krablet.close()
