"""Contended upserts: through a funnel, acknowledged after commit, against one row and one commit at a time.

    python benchmarks/warehouse/upserts.py [--quick]

Both sides do the same to the same table: add 1 to a counter and set a payload of 150 bytes, in a row drawn at random.
One side is a funnel in a process of its own and a client process that waits for 512 single writes at a time, over a
socket. The other is psycopg at its best number of connections, from threads of two processes, and beside that from
coroutines on uvloop. All run in turn, round after round; the figures are medians of the rounds' ratios.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from krea_data.krablet import up
from krea_data.krablet.funnels.client import AsyncFunnelClient, FunnelClient
from krea_data.krablet.funnels.flush import store
from krea_data.krablet.funnels.pieces import Piece, Rows
from krea_data.krablet.funnels.process import run_funnel
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.records.tables import declare_record, upsert
from krea_data.krablet.rpc.loop import new_loop
from krea_data.krablet.shards import Shards

RECORD = Record("bench", (Column("n", "int", "add"), Column("payload", "text")))
PAYLOAD = json.dumps({"url": "https://example.org/" + "x" * 40, "w": 1024, "h": 768, "hash": "f" * 16, "s": 0.73})
ONE = """
insert into record_bench as t (slot, id, n, payload) values (%s, %s, 1, %s)
on conflict (slot, id) do update set n = coalesce(t.n + excluded.n, excluded.n, t.n),
  payload = excluded.payload, ver = t.ver + 1, changed_at = now()"""
DEADLOCKS = "select deadlocks from pg_stat_database where datname = current_database()"
BARS = {1: 60.0, 100: 20.0, 10_000: 8.0}  # by number of keys


# Processes of the benchmark: each says that it is ready, waits for a line, works, and prints what it did as JSON.


def naive(dsn: str, connections: int, keys: int, seconds: float, seed: int) -> dict[str, Any]:
    """One-row autocommits, a connection to a thread: what code does that uses psycopg plainly."""
    slots = Shards([dsn], bits=None, patience_s=10.0).view.slots
    names = [(slots.slot(f"key {n}"), f"key {n}") for n in range(keys)]
    taken: list[float] = []
    start = threading.Event()

    def produce(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("select 1")
            start.wait()
            while (began := time.perf_counter()) < end:
                connection.execute(ONE, (*names[draw.randrange(keys)], PAYLOAD), prepare=True)
                taken.append(time.perf_counter() - began)

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    time.sleep(0.4 + 0.01 * connections)
    _say_ready()
    end = time.perf_counter() + seconds
    start.set()
    for thread in threads:
        thread.join()
    return {"taken": taken}


async def naive_on_loops(dsn: str, connections: int, keys: int, seconds: float, seed: int) -> dict[str, Any]:
    """One-row autocommits from coroutines on uvloop: the fastest that psycopg does them."""
    opened = [await psycopg.AsyncConnection.connect(dsn, autocommit=True) for _ in range(connections)]
    slots = Shards([dsn], bits=None, patience_s=10.0).view.slots
    names = [(slots.slot(f"key {n}"), f"key {n}") for n in range(keys)]
    taken: list[float] = []

    async def produce(connection: psycopg.AsyncConnection, number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        while (began := time.perf_counter()) < end:
            await connection.execute(ONE, (*names[draw.randrange(keys)], PAYLOAD), prepare=True)
            taken.append(time.perf_counter() - began)

    await asyncio.to_thread(_say_ready)
    end = time.perf_counter() + seconds
    await asyncio.gather(*(produce(connection, n) for n, connection in enumerate(opened)))
    for connection in opened:
        await connection.close()
    return {"taken": taken}


async def through(address: str, flying: int, keys: int, seconds: float, seed: int) -> dict[str, Any]:
    """Single writes through a funnel, each waited for."""
    funnel = await AsyncFunnelClient.connect(address)
    target = await funnel.target("record:bench")
    names = [f"key {n}" for n in range(keys)]
    taken: list[float] = []

    async def produce(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        while (began := time.perf_counter()) < end:
            await target.write(names[draw.randrange(keys)], {"n": 1, "payload": PAYLOAD})
            taken.append(time.perf_counter() - began)

    await asyncio.to_thread(_say_ready)
    end = time.perf_counter() + seconds
    await asyncio.gather(*map(produce, range(flying)))
    await funnel.close()
    return {"taken": taken}


def _say_ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def serve(dsns: list[str], address: str) -> None:
    """A funnel until SIGTERM."""

    run_funnel(dsns, address, ready=lambda said: print(said, flush=True))


def part(what: str, arguments: dict[str, Any]) -> None:
    """One process of the benchmark."""
    if what == "serve":
        serve(**arguments)
        return
    if what == "naive":
        print(json.dumps(naive(**arguments)))
        return
    work = {"naive_on_loops": naive_on_loops, "through": through}[what]
    with asyncio.Runner(loop_factory=new_loop) as runner:
        print(json.dumps(runner.run(work(**arguments))))


def spawn(what: str, **arguments: Any) -> "subprocess.Popen[str]":
    """Start a process of the benchmark."""
    command = [sys.executable, __file__, "--part", what, json.dumps(arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def together(processes: Sequence["subprocess.Popen[str]"], seconds: float) -> tuple[float, float]:
    """Let them work at the same time; return writes a second and the p99 latency in seconds."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "a process of the benchmark failed"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    taken = sorted(t for process in processes for t in json.loads(process.communicate()[0])["taken"])
    return len(taken) / seconds, taken[int(len(taken) * 0.99)]


def by_hand(dsn: str, connections: int, keys: int, seconds: float, what: str = "naive") -> tuple[float, float]:
    """The naive side, spread over two processes."""
    each = {"dsn": dsn, "connections": connections // 2, "keys": keys, "seconds": seconds}
    return together([spawn(what, **each, seed=n) for n in range(2)], seconds)


def by_funnel(address: str, flying: int, keys: int, seconds: float) -> tuple[float, float]:
    """Our side, one client process."""
    return together([spawn("through", address=address, flying=flying, keys=keys, seconds=seconds, seed=7)], seconds)


@contextmanager
def funnel(dsn: str, name: str = "f") -> Any:
    """A funnel in a process of its own; gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        process = spawn("serve", dsns=[dsn], address=f"unix:{folder}/{name}")
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.communicate()


def prepared(dsn: str, keys: int) -> None:
    """The table with all its rows, so that every write meets one."""
    shards = Shards([dsn], bits=None, patience_s=10.0)
    shards.attempt(0, lambda c: declare_record(c, RECORD))
    slot = shards.view.slots.slot
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("truncate record_bench, producer_mark, slot_mark")
        with connection.cursor() as cursor, cursor.copy("copy record_bench (slot, id, n, payload) from stdin") as copy:
            for n in range(keys):
                copy.write_row((slot(f"key {n}"), f"key {n}", 0, PAYLOAD))
        connection.execute("vacuum analyze record_bench")
        connection.execute("checkpoint")
    shards.close()


def contended(dsn: str, keys: int, seconds: float, rounds: int, counts: Sequence[int], flying: int) -> dict[str, float]:
    """Our rate over the best naive one, from threads and from loops."""
    rates: dict[str, list[float]] = {"naive": [], "naive_on_loops": [], "ours": []}
    with funnel(dsn) as address:
        for _ in range(rounds):
            prepared(dsn, keys)
            for what in ("naive", "naive_on_loops"):
                rates[what].append(max(by_hand(dsn, count, keys, seconds, what)[0] for count in counts))
            rates["ours"].append(by_funnel(address, flying, keys, seconds)[0])
    found = {what: [a / b for a, b in zip(rates["ours"], rates[what], strict=True)] for what in rates}
    ratio, loops = (statistics.median(found[what]) for what in ("naive", "naive_on_loops"))
    ours, threads, tuned = (statistics.median(rates[what]) for what in ("ours", "naive", "naive_on_loops"))
    print(
        f"{keys:>6} keys: funnel {ours:>9,.0f}/s, autocommit {threads:>7,.0f}/s, {ratio:.1f} times"
        f" ({min(found['naive']):.1f} to {max(found['naive']):.1f}; bar {BARS.get(keys, 0):g});"
        f" on uvloop {tuned:,.0f}/s, {loops:.1f} times",
        flush=True,
    )
    return {f"funnel_vs_autocommit_{keys}": ratio, f"funnel_vs_autocommit_on_uvloop_{keys}": loops}


def latency(dsn: str, seconds: float, rounds: int, flying: int) -> dict[str, float]:
    """p99 of the acknowledgement over that of an autocommit, with as many of both on their way, on 100 keys."""
    ratios, pairs = [], []
    with funnel(dsn) as address:
        for _ in range(rounds):
            prepared(dsn, 100)
            theirs, mine = by_hand(dsn, flying, 100, seconds)[1], by_funnel(address, flying, 100, seconds)[1]
            ratios.append(mine / theirs)
            pairs.append((mine, theirs))
    ours, theirs = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"p99 with {flying} on their way: funnel {ours:.1f} ms, autocommit {theirs:.1f} ms (bar 0.25 of it)", flush=True
    )
    return {"funnel_p99_vs_autocommit": statistics.median(ratios)}


def fenced(dsn: str, rows: int, rounds: int, seconds: float) -> dict[str, float]:
    """T4: batches with marks and fence against the bare upsert of the same rows."""
    from uuid import uuid4

    prepared(dsn, 10_000)
    shards = Shards([dsn], bits=None, patience_s=10.0)
    slot = shards.view.slots.slot
    names = [f"key {n}" for n in range(10_000)]
    draw, producer, ratios = random.Random(1), uuid4(), []
    seq = 0

    def drawn(ids: list[str]) -> Rows:
        return Rows([slot(i) for i in ids], ids, None, [[1] * len(ids), [PAYLOAD] * len(ids)])

    def bare(ids: list[str]) -> None:
        statement, values = upsert(RECORD, drawn(ids))
        shards.attempt(0, lambda c: c.execute(statement, values, prepare=True))

    def guarded(ids: list[str]) -> None:
        nonlocal seq
        piece = Piece(producer, seq, seq, drawn(ids))
        seq += 1
        shards.guarded(0, lambda c, d: store(c, d, RECORD, [piece]))

    def rate(work: Any) -> float:
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            work(draw.sample(names, rows))
            done += rows
        return done / seconds

    for _ in range(rounds):
        rates = rate(bare), rate(guarded)
        ratios.append(rates[1] / rates[0])
    shards.close()
    ratio = statistics.median(ratios)
    print(f"flush of {rows} rows with marks and fence: {ratio:.2f} of the bare statement (bar 0.85)", flush=True)
    return {"funnel_fenced_vs_bare": ratio}


def unsorted(dsn: str, seconds: float, producers: int) -> dict[str, float]:
    """T5: producers in any order through two funnels over the same rows."""
    prepared(dsn, 1000)
    with psycopg.connect(dsn, autocommit=True) as connection, funnel(dsn) as one, funnel(dsn, "g") as two:
        before = (connection.execute(DEADLOCKS).fetchone() or (0,))[0]
        sent = [0] * producers

        def produce(number: int) -> None:
            draw = random.Random(number)
            with FunnelClient((one, two)[number % 2]) as client:
                target = client.target("record:bench")
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    acks = [target.write(f"key {draw.randrange(1000)}", {"n": 1}) for _ in range(100)]
                    for ack in acks:
                        ack.result(60)
                    sent[number] += len(acks)

        threads = [threading.Thread(target=produce, args=(number,)) for number in range(producers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stored = (connection.execute("select sum(n) from record_bench").fetchone() or (0,))[0]
        time.sleep(0.2)
        deadlocks = (connection.execute(DEADLOCKS).fetchone() or (0,))[0] - before
    print(
        f"{producers} unsorted producers, two funnels: {deadlocks} deadlocks, {sum(sent) - stored:g} writes lost",
        flush=True,
    )
    return {"funnel_deadlocks": float(deadlocks), "funnel_lost": float(sum(sent) - stored)}


def measured(dsns: Sequence[str], quick: bool = False) -> dict[str, float]:
    """All figures, on the first shard."""
    seconds, rounds, counts, flying = (0.3, 1, (4,), 16) if quick else (3.0, 3, (16, 64), 512)
    found: dict[str, float] = {}
    for keys in (1, 100, 10_000):
        found |= contended(dsns[0], keys, seconds, rounds, counts, flying)
    found["funnel_vs_autocommit"] = found["funnel_vs_autocommit_100"]
    found |= latency(dsns[0], seconds, rounds, 4 if quick else 64)
    found |= fenced(dsns[0], 500, rounds, seconds / 2)
    return found | unsorted(dsns[0], seconds, 4 if quick else 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", nargs=2)
    given = parser.parse_args()
    if given.part:
        part(given.part[0], json.loads(given.part[1]))
        return
    with tempfile.TemporaryDirectory() as folder, up(Path(folder)) as cluster:
        print(json.dumps(measured(cluster.dsns, given.quick)))


if __name__ == "__main__":
    main()
