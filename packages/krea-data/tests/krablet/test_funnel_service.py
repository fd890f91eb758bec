import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_data.krablet import Krablet
from krea_data.krablet.funnels.client import AsyncFunnelClient, FunnelClient
from krea_data.krablet.funnels.intake import Order, Request
from krea_data.krablet.funnels.lane import Limits
from krea_data.krablet.funnels.marks import prune_marks
from krea_data.krablet.funnels.pieces import Piece, Rows
from krea_data.krablet.funnels.service import FunnelService
from krea_data.krablet.funnels.spool import Spool
from krea_data.krablet.funnels.storing import store_routed
from krea_data.krablet.moves.move import move
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.records.tables import declare_record
from krea_data.krablet.rpc import Busy, Remote, Server, serve
from krea_data.krablet.rpc.loop import LoopThread
from krea_data.krablet.shards import Shards
from krea_data.testing import rows

pytestmark = pytest.mark.postgres

COUNTER = Record("counter", (Column("n", "int", "add"), Column("last", "text"), Column("top", "int", "max")))
DEADLOCKS = "select deadlocks from pg_stat_database where datname = current_database()"


class Serving:
    """A funnel on a thread of this process."""

    def __init__(self, dsns: list[str], address: str, limits: Limits | None = None, spool: Spool | None = None) -> None:
        self.thread = LoopThread("funnel server")
        self.shards = Shards(dsns, bits=None, patience_s=20.0)
        self.service = FunnelService(self.shards, limits=limits, spool=spool)
        self.server: Server = self.thread.run(self._start(address))
        self.address = self.server.address

    async def _start(self, address: str) -> Server:
        await self.service.start()
        return await serve(self.service, address, tokens=None)

    def close(self) -> None:
        self.thread.run(self.server.drain())
        self.thread.run(self.service.close())
        self.thread.stop()
        self.shards.close()


@pytest.fixture
def dsns(new_dsns: Callable[[int], list[str]]) -> list[str]:
    return new_dsns(2)


@pytest.fixture
def serving(dsns: list[str], tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(dsns, f"unix:{tmp_path}/f")
    yield serving
    serving.close()


def counters(dsns: list[str]) -> dict[str, tuple[Any, ...]]:
    """The rows of all shards by id."""
    found: dict[str, tuple[Any, ...]] = {}
    for dsn in dsns:
        with psycopg.connect(dsn) as connection:
            found |= {
                row[0]: row[1:]
                for row in connection.execute("select id, n, last, top from record_counter where state <> 1")
            }
    return found


def test_writes_of_threads_are_joined_and_acknowledged_after_commit(serving: Serving, dsns: list[str]) -> None:
    with FunnelClient(serving.address) as funnel:
        funnel.declare(COUNTER)
        counter = funnel.target("record:counter")

        def produce(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(40):
                acks = [counter.write(f"k{draw.randrange(30)}", {"n": 1, "top": seed}) for _ in range(5)]
                for ack in acks:
                    ack.result(30)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(produce, range(8)))
        found = counters(dsns)
        assert sum(n for n, _, _ in found.values()) == 8 * 40 * 5
        assert max(top for _, _, top in found.values()) == 7
        stored = sum(lane["stored"] for lane in funnel.status()["lanes"].values())
        assert stored < 8 * 40 * 5  # what waited together went together
        assert {dsn: bool(counters([dsn])) for dsn in dsns} == dict.fromkeys(dsns, True)
        counter.write("k0", None).result(30)
        assert "k0" not in counters(dsns)
        counter.write("k0", {"n": 5}).result(30)
        assert counters(dsns)["k0"] == (5, None, None)


def test_a_record_that_was_declared_on_one_shard_only_is_declared_on_the_other(
    serving: Serving, dsns: list[str]
) -> None:
    """Its funnel may be killed in the middle of that."""
    for columns in (COUNTER.columns[:2], COUNTER.columns):
        serving.shards.attempt(0, lambda c, columns=columns: declare_record(c, Record("counter", columns)))
        with FunnelClient(serving.address) as funnel:
            counter = funnel.target("record:counter")
            values = {"n": 1, "last": "x", "top": 3}
            acks = [counter.write(f"k{n}", {c.name: values[c.name] for c in counter.record.columns}) for n in range(40)]
            for ack in acks:
                ack.result(30)
        assert len(counters(dsns) if len(columns) == 3 else acks) == 40
        serving.service._targets.clear()


def test_coroutines_share_batches(serving: Serving, dsns: list[str]) -> None:
    async def work() -> None:
        async with await AsyncFunnelClient.connect(serving.address) as funnel:
            await funnel.declare(COUNTER)
            counter = await funnel.target("record:counter")

            async def produce(seed: int) -> None:
                for step in range(30):
                    await counter.write(f"k{(seed + step) % 10}", {"n": 1})

            await asyncio.gather(*map(produce, range(50)))

    asyncio.run(work())
    assert sum(n for n, _, _ in counters(dsns).values()) == 1500
    assert sum(lane.batches for lane in serving.service._lanes.values()) < 300


def test_results_go_through_the_same_door(serving: Serving, dsns: list[str]) -> None:
    with Krablet(dsns, patience_s=20.0) as krablet, FunnelClient(serving.address) as funnel:
        krablet.add(rows(10))
        score = funnel.target("result:score")
        acks = {row.id: score.write(row.id, {"value": {"by": n}}) for n, row in enumerate(rows(10))}
        acks["dropped"] = score.write("synthetic/00003", {"value": {}, "dropped": "too odd"})
        stranger = score.write("stranger", {"value": {}})
        for ack in acks.values():
            ack.result(30)
        with pytest.raises(ValueError, match="'stranger' was refused: its id is not in the table"):
            stranger.result(30)
        assert [row.id for row in krablet.scan(kept_by=["score"])] == [
            row.id for row in rows(10) if row.id != "synthetic/00003"
        ]
        score.write("synthetic/00003", {"value": {"by": 3}}).result(30)
        assert [row.results["score"].value for row in krablet.scan(kept_by=["score"])] == [{"by": n} for n in range(10)]


def test_bad_values_and_targets_are_refused_at_the_door(serving: Serving) -> None:
    with FunnelClient(serving.address) as funnel, Remote(serving.address) as raw:
        with pytest.raises(LookupError, match="no record 'counter'; declare it"):
            funnel.target("record:counter")
        with pytest.raises(ValueError, match="neither record:NAME"):
            funnel.target("counter")
        funnel.declare(COUNTER)
        counter = funnel.target("record:counter")
        for values, said in [({"last": "a\0b"}, "NUL"), ({"n": "1"}, "64 bits"), ({"m": 1}, "counter has")]:
            with pytest.raises(ValueError, match=said):
                counter.write("k", values)
        request = {"producer": uuid4().bytes, "seq": 0, "floor": 0, "target": "record:counter", "names": ["last"]}
        for bad, said in [
            ({"ids": ["k"], "columns": [["a\0b"]]}, "NUL"),
            ({"ids": ["k\0"], "columns": [["a"]]}, "NUL"),
            ({"ids": ["k", "k"], "columns": [["a", "b"]]}, "twice"),
            ({"ids": ["k"], "columns": [["a", "b"]]}, "other lengths"),
            ({"ids": ["k"], "columns": [["a"]], "names": ["m"]}, "not among"),
            ({"ids": ["k"], "columns": [["a"]], "ack": "maybe"}, "ack"),
            ({"ids": ["k"], "columns": [["a"]], "ack": "journaled"}, "no spool"),
            ({"ids": ["k"], "columns": [["a"]], "floor": 3}, "floor"),
            ({"ids": ["k"], "columns": [["a"]], "ops": [9]}, "ops"),
            ({"ids": ["k"]}, "no request"),
        ]:
            with pytest.raises(ValueError, match=said):
                raw.call("write", **{**request, **bad})


def test_poison_is_refused_alone_with_its_sqlstate(serving: Serving, dsns: list[str]) -> None:
    with FunnelClient(serving.address) as funnel, FunnelClient(serving.address) as another:
        funnel.declare(COUNTER)
        counter, same = funnel.target("record:counter"), another.target("record:counter")
        counter.write("full", {"n": 2**63 - 1}).result(30)
        with _held(serving):
            good = [counter.write(f"k{n}", {"n": 1}) for n in range(100)]
            bad = counter.write("full", {"n": 1})
            fine = same.write("full", {"top": 3})  # to the same row, and not refused with it
        with pytest.raises(ValueError, match="'full' was refused: 22003: bigint out of range"):
            bad.result(30)
        for ack in [*good, fine]:
            ack.result(30)
        found = counters(dsns)
        assert len(found) == 101
        assert found["full"] == (2**63 - 1, None, 3)


class _held:  # noqa: N801 - reads as a statement
    """Keep every batch from being stored meanwhile."""

    def __init__(self, serving: Serving) -> None:
        self.serving, self.gate = serving, threading.Event()

    def __enter__(self) -> None:
        for lane in self.serving.service._lanes.values():
            write = lane._write
            lane._write = lambda pieces, write=write: (self.gate.wait(30), write(pieces))[1]

    def __exit__(self, *_: object) -> None:
        self.gate.set()


def request(producer: bytes, seq: int, floor: int, writes: dict[str, int]) -> dict[str, Any]:
    return {
        "producer": producer,
        "seq": seq,
        "floor": floor,
        "target": "record:counter",
        "ids": list(writes),
        "names": ["n", "last"],
        "columns": [list(writes.values()), [str(seq)] * len(writes)],
    }


def test_a_request_that_is_sent_again_is_stored_once(serving: Serving, dsns: list[str], tmp_path: Path) -> None:
    """By the same funnel and by another one, after it was stored, and with its refusals."""
    other = Serving(dsns, f"unix:{tmp_path}/g")
    with FunnelClient(serving.address) as funnel, Remote(serving.address) as raw, Remote(other.address) as again:
        funnel.declare(COUNTER)
        producer = uuid4().bytes
        first = {f"k{n}": 1 for n in range(20)}
        assert raw.call("write", **request(producer, 0, 0, first)) is None
        assert raw.call("write", **request(producer, 0, 0, first)) is None
        assert again.call("write", **request(producer, 0, 0, first)) is None
        poison = {"k1": 2**63 - 1, "k2": 1}
        for client in (raw, again, raw):
            assert "22003" in client.call("write", **request(producer, 1, 0, poison))["refused"]["k1"]
        assert again.call("write", **request(producer, 2, 2, {"k3": 1})) is None
        # Below the floor nothing is stored, whatever is forgotten of it.
        assert again.call("write", **request(producer, 0, 0, first)) is None
        found = counters(dsns)
        assert {key: n for key, (n, _, _) in found.items()} == {**first, "k2": 2, "k3": 2}
    assert sum(serving.shards.attempt(n, lambda c: prune_marks(c, -1.0)) for n in (0, 1)) > 0
    other.close()


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.dictionaries(st.sampled_from("abc"), st.integers(-5, 5), min_size=1)),
        min_size=1,
        max_size=12,
    ),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    draw=st.randoms(use_true_random=False),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def check_resends(
    shards: Shards, steps: list[tuple[int, dict[str, int]]], cuts: list[int], draw: random.Random
) -> None:
    producers = [uuid4() for _ in range(3)]
    seqs = [0, 0, 0]
    wanted: dict[str, int] = {}
    pieces: list[Piece] = []
    for who, values in steps:
        slots = [shards.view.slots.slot(key) for key in values]
        columns = [list(values.values()) if column.name == "n" else None for column in COUNTER.columns]
        pieces.append(Piece(producers[who], seqs[who], 0, Rows(slots, list(values), None, columns)))
        seqs[who] += 1
        for key, n in values.items():
            wanted[key] = wanted.get(key, 0) + n
    # Every request once or more, in any order, cut into any batches.
    todo = pieces + draw.choices(pieces, k=len(pieces))
    draw.shuffle(todo)
    while todo:
        size = cuts[len(todo) % len(cuts)]
        batch, todo = todo[:size], todo[size:]
        unique = list({(piece.producer, piece.seq): piece for piece in batch}.values())
        store_routed(shards, COUNTER, unique)
    found: dict[str, int] = {}
    for number in shards.numbers:
        found |= dict(shards.attempt(number, lambda c: c.execute("select id, n from record_counter").fetchall()))
        shards.attempt(number, lambda c: c.execute("truncate record_counter, producer_mark, slot_mark"))
    assert found == wanted


def test_any_order_of_resends_in_any_batches_is_each_request_once(serving: Serving) -> None:
    with FunnelClient(serving.address) as funnel:
        funnel.declare(COUNTER)
    check_resends(serving.shards)


def test_a_producers_requests_are_let_in_by_their_numbers() -> None:
    order, producer = Order(), uuid4()

    def ask(seq: int, floor: int) -> None:
        asked = Request(
            producer=producer, seq=seq, floor=floor, target="", ack="committed", ids=[], ops=None, columns=[]
        )
        order.check(asked)
        order.note(asked)

    ask(7, 7)  # not known, and nothing below will come
    ask(8, 7)
    with pytest.raises(Busy, match="request 10 came before 9"):
        ask(10, 7)
    ask(9, 7)
    ask(10, 7)
    ask(7, 7)  # again
    ask(11, 8)
    ask(15, 15)  # the producer gave up on those between


def fill(raw: Remote, producer: bytes) -> None:
    for seq in range(60):
        raw.call("write", ack="accepted", **request(producer, seq, 0, {f"r{seq}-{n}": 1 for n in range(20)}))


def test_too_much_is_busy_and_recovers(dsns: list[str], tmp_path: Path) -> None:
    limits = Limits(batch_rows=50, waiting_rows=100)
    serving = Serving(dsns, f"unix:{tmp_path}/f", limits)
    with FunnelClient(serving.address, batch_rows=40, requests=8, patience_s=30.0) as funnel:
        funnel.declare(COUNTER)
        counter = funnel.target("record:counter")
        counter.write("warm", {"n": 1}).result(30)
        counter.write("up", {"n": 1}).result(30)
        with _held(serving), Remote(serving.address, timeout_s=30.0) as raw:
            producer = uuid4().bytes
            acks = [counter.write(f"k{n}", {"n": 1}) for n in range(1000)]
            with pytest.raises(Busy, match="try again") as busy:
                fill(raw, producer)
            assert 0 < busy.value.retry_after_s <= 10
            assert all(lane.rows <= limits.waiting_rows for lane in serving.service._lanes.values())
        for ack in acks:
            ack.result(30)
    assert sum(key.startswith("k") for key in counters(dsns)) == 1000
    serving.close()


def test_unsorted_producers_through_two_funnels_do_not_deadlock(
    serving: Serving, dsns: list[str], tmp_path: Path
) -> None:
    other = Serving(dsns, f"unix:{tmp_path}/g", Limits(batch_rows=30))
    with psycopg.connect(dsns[0], autocommit=True) as connection:
        before = connection.execute(DEADLOCKS).fetchone()
        clients = [FunnelClient((serving, other)[n % 2].address) for n in range(16)]
        clients[0].declare(COUNTER)

        def produce(seed: int) -> None:
            draw = random.Random(seed)
            counter = clients[seed].target("record:counter")
            for _ in range(10):
                keys = [f"k{n}" for n in draw.sample(range(60), 25)]
                for ack in [counter.write(key, {"n": 1}) for key in keys]:
                    ack.result(60)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(produce, range(16)))
        for client in clients:
            client.close()
        assert sum(n for n, _, _ in counters(dsns).values()) == 16 * 10 * 25
        time.sleep(0.1)
        assert connection.execute(DEADLOCKS).fetchone() == before
    other.close()


def test_columns_added_by_another_process_are_taken(serving: Serving, dsns: list[str], tmp_path: Path) -> None:
    other = Serving(dsns, f"unix:{tmp_path}/g")
    wide = Record("counter", (*COUNTER.columns, Column("more", "text")))
    with FunnelClient(serving.address) as old, FunnelClient(other.address) as new:
        old.declare(COUNTER)
        narrow = old.target("record:counter")
        narrow.write("a", {"n": 1}).result(30)
        new.declare(wide)
        new.target("record:counter").write("a", {"n": 1, "more": "x"}).result(30)
        with FunnelClient(serving.address) as late:
            target = late.target("record:counter")
            assert target.record.columns == COUNTER.columns  # what this funnel knew
        narrow.write("a", {"n": 1}).result(30)
    assert counters(dsns)["a"][0] == 3
    other.close()


def test_marks_and_rows_follow_a_slot_that_moves(serving: Serving, dsns: list[str]) -> None:
    """Writers go on meanwhile, and a request that was stored before the move is known after it."""
    with FunnelClient(serving.address) as funnel, Remote(serving.address) as raw, Krablet(dsns) as krablet:
        funnel.declare(COUNTER)
        producer, first = uuid4().bytes, {f"k{n}": 1 for n in range(40)}
        assert raw.call("write", **request(producer, 0, 0, first)) is None
        stop, sent = threading.Event(), [0]

        def produce() -> None:
            counter = funnel.target("record:counter")
            while not stop.is_set():
                acks = [counter.write(f"k{n}", {"n": 1}) for n in range(40)]
                for ack in acks:
                    ack.result(60)
                sent[0] += len(acks)

        with ThreadPoolExecutor(1) as pool:
            producing = pool.submit(produce)
            try:
                move(krablet, range(10), 1)
                move(krablet, range(40, 50), 0)
            finally:
                stop.set()
            producing.result(60)
        assert sent[0] > 0
        assert raw.call("write", **request(producer, 0, 0, first)) is None
        assert sum(n for n, _, _ in counters(dsns).values()) == sent[0] + len(first)
        assert serving.shards.view.slots.shards[:10] == (1,) * 10
