import contextlib
import os
from collections.abc import Callable

import psycopg
import pytest
from krea_data.krablet import Krablet, ShardDown
from krea_data.krablet.connection import Shard, make_conninfo, passing, patiently


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (psycopg.OperationalError("gone"), True),
        (psycopg.errors.DeadlockDetected(), True),
        (psycopg.errors.SerializationFailure(), True),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.DiskFull(), True),
        (psycopg.errors.QueryCanceled(), False),
        (psycopg.errors.UniqueViolation(), False),
        (psycopg.InterfaceError("misused"), False),
    ],
)
def test_only_some_failures_pass(error: psycopg.Error, wanted: bool) -> None:
    assert passing(error) is wanted


def test_a_shard_that_is_down_is_named_without_its_password() -> None:
    with pytest.raises(ShardDown, match=r"shard 0 \(host=/nowhere port=1 dbname=x\) does not answer") as caught:
        Krablet(["host=/nowhere port=1 dbname=x password=secret"])
    assert "secret" not in str(caught.value)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="list with the DSN"):
        Krablet("dbname=x")
    with pytest.raises(ValueError, match="list with the DSN"):
        Krablet([])
    with pytest.raises(ValueError, match="DSN of shard 0 cannot be read"):
        Krablet(["nonsense"])
    with pytest.raises(ValueError, match="max_attempts 0"):
        Krablet(["dbname=x"], max_attempts=0)


def test_a_full_disk_is_named() -> None:
    def full(_: psycopg.Connection) -> None:
        raise psycopg.errors.DiskFull(
            "could not extend file base/5: No space left on device\nHINT: Check free disk space."
        )

    shard = Shard(3, "dbname=x", patience_s=0.0)
    shard.connection = lambda _: contextlib.nullcontext()  # type: ignore[method-assign, assignment]
    with pytest.raises(
        ShardDown, match=r"^shard 3 \(dbname=x\) has a full disk: could not .* device; make room there$"
    ):
        shard.attempt(full)


def test_patience_outlasts_a_restart_and_ends() -> None:
    tries: list[int] = []

    def make() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ShardDown("shard 0 does not answer")
        return "open"

    assert (patiently(make, 30.0), len(tries)) == ("open", 3)
    tries.clear()
    with pytest.raises(ShardDown):
        patiently(make, 0.0)
    assert len(tries) == 1


@pytest.mark.postgres
def test_a_dsn_that_does_not_work_is_named(new_dsns: Callable[[int], list[str]]) -> None:
    wrong = make_conninfo(new_dsns(1)[0], dbname="nothing", password="secret")
    with pytest.raises(ValueError, match=r'DSN of shard 0 .* database "nothing" does not exist; correct it$') as caught:
        Krablet([wrong])
    assert "secret" not in str(caught.value)


@pytest.mark.postgres
def test_too_many_connections_are_named(new_dsns: Callable[[int], list[str]]) -> None:
    dsn = new_dsns(1)[0]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create role crowded login connection limit 0")
        with pytest.raises(ShardDown, match=r"has no connection left: .*; end some of its clients, or raise its max_"):
            Krablet([make_conninfo(dsn, user="crowded")])
        connection.execute("drop role crowded")


@pytest.mark.postgres
def test_a_cut_connection_is_replaced(new_dsns: Callable[[int], list[str]]) -> None:
    shard, other = (Shard(0, dsn, patience_s=10.0) for dsn in new_dsns(2))
    (pid,) = shard.attempt(lambda c: c.execute("select pg_backend_pid()").fetchone()) or (0,)
    other.attempt(lambda c: c.execute("select pg_terminate_backend(%s, 5000)", (pid,)))
    (new,) = shard.attempt(lambda c: c.execute("select pg_backend_pid()").fetchone()) or (0,)
    assert new != pid
    shard.close()
    other.close()


@pytest.mark.postgres
def test_a_forked_child_leaves_the_parents_connection_alone(new_dsns: Callable[[int], list[str]]) -> None:
    shard = Shard(0, new_dsns(1)[0], patience_s=5.0)
    ask = "select pg_backend_pid()"
    mine = shard.attempt(lambda c: c.execute(ask).fetchone())
    child = os.fork()
    if not child:
        same = shard.attempt(lambda c: c.execute(ask).fetchone()) == mine
        shard.close()
        os._exit(int(same))
    assert os.waitpid(child, 0)[1] == 0
    assert shard.attempt(lambda c: c.execute(ask).fetchone()) == mine
    shard.close()
