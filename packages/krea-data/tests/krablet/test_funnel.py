import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_data.krablet import Funnel, Krablet, ShardDown
from krea_data.krablet.connection import Shard
from krea_data.krablet.funnels.funnel import latest
from krea_data.rows import Result
from krea_data.testing import rows


def add(old: int, new: int) -> int:
    return old + new


class Store:
    """What a funnel writes to, refusing odd things, and able to make a batch wait."""

    def __init__(self, merge: Callable[[int, int], int] = latest) -> None:
        self.merge = merge
        self.values: dict[str, int] = {}
        self.batches: list[list[str]] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, batch: Mapping[str, int]) -> Mapping[str, Exception]:
        assert self.open.wait(30)
        if "poison" in batch:
            raise ValueError("poison is in it")
        self.batches.append(list(batch))
        for key, value in batch.items():
            if key != "unknown":
                self.values[key] = self.merge(self.values[key], value) if key in self.values else value
        return {key: KeyError(key) for key in batch if key == "unknown"}


@pytest.mark.parametrize("merge", [latest, add, max])
@given(
    submits=st.lists(st.dictionaries(st.sampled_from("abcde"), st.integers(-9, 9), max_size=4), max_size=30),
    batch_keys=st.integers(1, 4),
    held=st.sets(st.integers(0, 29)),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_coalescing_equals_one_by_one(
    merge: Callable[[int, int], int], submits: list[dict[str, int]], batch_keys: int, held: set[int]
) -> None:
    wanted: dict[str, int] = {}
    store = Store(merge)
    with Funnel(store, merge=merge, batch_keys=batch_keys, waiting_keys=1000) as funnel:
        for number, values in enumerate(submits):
            (store.open.clear if number in held else store.open.set)()
            funnel.submit(values)
            for key, value in values.items():
                wanted[key] = merge(wanted[key], value) if key in wanted else value
        store.open.set()
    assert store.values == wanted
    assert all(batch == sorted(batch) and len(batch) <= batch_keys for batch in store.batches)


def test_what_arrives_meanwhile_is_one_batch() -> None:
    store = Store()
    with Funnel(store) as funnel:
        store.open.clear()
        first = funnel.submit({"z": 0})
        while funnel._waiting:
            time.sleep(0.001)
        rest = [funnel.submit({key: n}) for n, key in enumerate("cabcab")]
        assert not first.done()
        store.open.set()
        assert [future.result(10) for future in [first, *rest]] == [{}] * 7
    assert store.batches == [["z"], ["a", "b", "c"]]
    assert store.values == {"z": 0, "c": 3, "a": 4, "b": 5}


def test_poison_is_refused_alone() -> None:
    store = Store()
    with Funnel(store) as funnel:
        store.open.clear()
        blocked = funnel.submit({"first": 1})
        mates = funnel.submit({f"k{n}": n for n in range(50)})
        mixed = funnel.submit({"good": 1, "poison": 2, "unknown": 3})
        store.open.set()
        assert blocked.result(10) == mates.result(10) == {}
        refused = mixed.result(10)
    assert refused.keys() == {"poison", "unknown"}
    assert isinstance(refused["poison"], ValueError)
    assert len(store.values) == 52


def test_other_errors_reach_every_caller() -> None:
    def broken(_: Mapping[str, int]) -> Mapping[str, Exception]:
        raise ShardDown("shard 0 does not answer")

    with Funnel(broken) as funnel:
        for future in [funnel.submit({"a": 1, "b": 2}), funnel.submit({"c": 1})]:
            with pytest.raises(ShardDown, match="shard 0"):
                future.result(10)


def test_submit_waits_when_too_much_waits() -> None:
    store = Store()
    store.open.clear()
    done: list[Future] = []
    with Funnel(store, batch_keys=2, waiting_keys=4) as funnel:
        producer = threading.Thread(target=lambda: done.extend(funnel.submit({str(n): n}) for n in range(40)))
        producer.start()
        while len(funnel._waiting) < 4:
            time.sleep(0.001)
        producer.join(0.1)
        assert producer.is_alive()
        assert len(funnel._waiting) == 4
        store.open.set()
        producer.join(10)
    assert len(store.values) == len(done) == 40
    with pytest.raises(ValueError, match="closed"):
        funnel.submit({"late": 1})


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch_keys 10"):
        Funnel(Store(), batch_keys=10, waiting_keys=5)


@pytest.mark.postgres
def test_unsorted_producers_neither_deadlock_nor_lose_a_count(new_dsns: Callable[[int], list[str]]) -> None:
    """Two funnels, as of two processes, over the same hot counters."""
    shard = Shard(0, new_dsns(1)[0], patience_s=20.0)
    with psycopg.connect(shard.dsn, autocommit=True) as connection:
        connection.execute("create table counter (key text primary key, n bigint not null) with (fillfactor = 50)")
        (deadlocks,) = connection.execute(DEADLOCKS).fetchone() or (0,)

    def write(batch: Mapping[str, int]) -> Mapping[str, Exception]:
        shard.attempt(lambda c: c.execute(UPSERT, (list(batch), list(batch.values()))))
        return {}

    def produce(funnel: Funnel[str, int], seed: int) -> None:
        draw = random.Random(seed)
        futures = [funnel.submit({f"key {draw.randrange(50)}": 1 for _ in range(7)}) for _ in range(150)]
        sent.append(sum(draw_sizes(seed)))
        assert all(future.result(60) == {} for future in futures)

    sent: list[int] = []
    with Funnel(write, merge=add, batch_keys=20) as one, Funnel(write, merge=add, batch_keys=20) as two:
        threads = [threading.Thread(target=produce, args=((one, two)[seed % 2], seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with psycopg.connect(shard.dsn, autocommit=True) as connection:
        assert connection.execute("select sum(n), count(*) from counter").fetchone() == (sum(sent), 50)
        assert connection.execute(DEADLOCKS).fetchone() == (deadlocks,)
    shard.close()


def draw_sizes(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [len({draw.randrange(50) for _ in range(7)}) for _ in range(150)]


DEADLOCKS = "select deadlocks from pg_stat_database where datname = current_database()"
UPSERT = """
insert into counter (key, n) select * from unnest(%s::text[], %s::bigint[])
on conflict (key) do update set n = counter.n + excluded.n"""


@pytest.mark.postgres
def test_puts_of_many_threads_and_krablets_end_with_the_last(new_dsns: Callable[[int], list[str]]) -> None:
    dsns = new_dsns(2)
    ids = [row.id for row in rows(40)]
    with Krablet(dsns, patience_s=20.0) as one, Krablet(dsns, patience_s=20.0) as two:
        one.add(rows(40))

        def produce(table: Krablet, seed: int) -> None:
            draw = random.Random(seed)
            for step in range(15):
                chosen = draw.sample(ids, 10)
                table.put("score", {row_id: Result(value={"by": seed, "step": step}) for row_id in chosen})

        threads = [threading.Thread(target=partial(produce, (one, two)[seed % 2], seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one.put("score", {row_id: Result(value={"last": True}) for row_id in reversed(ids)})
        assert [row.results["score"].value for row in two.scan()] == [{"last": True}] * 40
        with psycopg.connect(dsns[0]) as connection:
            assert connection.execute(DEADLOCKS).fetchone() == (0,)


@pytest.mark.postgres
def test_what_only_the_server_refuses_is_named_and_the_rest_is_stored(new_dsns: Callable[[int], list[str]]) -> None:
    with Krablet(new_dsns(1), patience_s=20.0) as krablet:
        krablet.add(rows(20))
        krablet.declare_results("score")
        batch = {("score", row.id): ("{}", None) for row in rows(20)}
        batch["score", "synthetic/00007"] = ("{no json", None)
        refused = krablet._puts._funnel(0).submit(batch).result(20)
        assert list(refused) == [("score", "synthetic/00007")]
        assert isinstance(refused["score", "synthetic/00007"], psycopg.DataError)
        assert len(list(krablet.scan(kept_by=["score"]))) == 19
