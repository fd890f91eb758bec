"""Empty a queue of no-op jobs with several processes: ours, pgqueuer's or procrastinate's.

`python benchmarks/warehouse/drains.py ours|pgqueuer|procrastinate DSN --jobs 10000 --processes 4 --batch 100` prints
{"done": jobs, "seconds": from the first job to the last} as JSON. The peers run by their own means: their public API,
their schema, their worker loop (pgqueuer's own command runs it on uvloop too), logs off. Ours leases with a fencing
token, and stores a result for every job. The databases of the peers are made anew each time, beside the one that the
DSN names; ours needs an empty schema.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import time
import warnings
from collections.abc import Callable
from typing import Any

import psycopg
from krea_data.krablet import Krablet
from krea_data.rows import Result, Row
from krea_data.testing import FakeTask
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

LEASE_S = 60.0
Span = tuple[int, float, float]  # jobs, when the first began, when the last was done, by a clock of the machine


def ours_ready(dsn: str, jobs: int) -> str:
    """Rows that are due for one task."""
    with Krablet([dsn]) as table:
        table.register([FakeTask(name="job")])
        table.add(Row(id=f"job/{number:07d}", blob="") for number in range(jobs))
    return dsn


def ours(dsn: str, batch: int, name: str) -> Span:
    """Claim, and exchange results for further rows until nothing is left."""
    task = FakeTask(name="job")
    done = 0
    with Krablet([dsn]) as table:
        table.register([task])
        first = last = time.monotonic()
        claims = table.claim(task, name, batch, LEASE_S)
        while claims:
            stored, claims = table.exchange(task, dict.fromkeys(claims, Result()), name, batch, LEASE_S)
            done, last = done + stored, time.monotonic()
    return done, first, last


def pgqueuer_ready(dsn: str, jobs: int) -> str:
    """Their tables, with jobs in them."""
    own = _database(dsn, "bench_pgqueuer")

    async def fill() -> None:
        from pgqueuer.db import PsycopgDriver
        from pgqueuer.queries import Queries

        async with await psycopg.AsyncConnection.connect(own, autocommit=True) as connection:
            queries = Queries(PsycopgDriver(connection))
            await queries.install()
            for start in range(0, jobs, 5000):
                some = min(5000, jobs - start)
                await queries.enqueue(["job"] * some, [b""] * some, [0] * some)

    asyncio.run(fill())
    return own


def pgqueuer(dsn: str, batch: int, name: str) -> Span:
    """Their worker until their queue is empty."""
    import uvloop
    from pgqueuer import PgQueuer, types
    from pgqueuer.db import PsycopgDriver

    stamps: list[float] = []

    async def drain() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            worker = PgQueuer(PsycopgDriver(connection))

            @worker.entrypoint("job")
            async def job(_: Any) -> None:
                stamps.append(time.monotonic())

            await worker.run(batch_size=batch, mode=types.QueueExecutionMode.drain)

    uvloop.run(drain())
    return _span(stamps)


def procrastinate_ready(dsn: str, jobs: int) -> str:
    """Their tables, with jobs in them."""
    own = _database(dsn, "bench_procrastinate")

    async def fill() -> None:
        app, task = _app(own, [])
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            for start in range(0, jobs, 2000):
                await task.batch_defer_async(*[{} for _ in range(min(2000, jobs - start))])

    asyncio.run(fill())
    return own


def procrastinate(dsn: str, batch: int, name: str) -> Span:
    """Their worker until their queue is empty; it takes jobs one by one, so that a batch is ten at the same time."""
    stamps: list[float] = []

    async def drain() -> None:
        app, _ = _app(dsn, stamps)
        async with app.open_async():
            await app.run_worker_async(
                queues=["default"],
                wait=False,
                concurrency=10,
                delete_jobs="always",
                install_signal_handlers=False,
                listen_notify=False,
            )

    asyncio.run(drain())
    return _span(stamps)


def _app(dsn: str, stamps: list[float]) -> tuple[Any, Any]:
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=dsn, min_size=2, max_size=12))

    @app.task(queue="default", name="job")
    async def job() -> None:
        stamps.append(time.monotonic())

    return app, job


READY: dict[str, Callable[[str, int], str]] = {
    "ours": ours_ready,
    "pgqueuer": pgqueuer_ready,
    "procrastinate": procrastinate_ready,
}
WORK: dict[str, Callable[[str, int, str], Span]] = {
    "ours": ours,
    "pgqueuer": pgqueuer,
    "procrastinate": procrastinate,
}


def drained(library: str, dsn: str, jobs: int, processes: int, batch: int) -> dict[str, float]:
    """Fill a queue, start the processes at the same moment, and say how many jobs were done in what time."""
    own = READY[library](dsn, jobs)
    with psycopg.connect(own, autocommit=True) as connection:
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")
    context = multiprocessing.get_context("spawn")
    gate, spans = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_work, args=(library, own, batch, f"w{n}", gate, spans)) for n in range(processes)
    ]
    for worker in workers:
        worker.start()
    found: list[Span] = [span for span in (spans.get(timeout=300) for _ in workers) if span[0]]
    for worker in workers:
        worker.join()
    seconds = max(last for *_, last in found) - min(first for _, first, _ in found)
    return {"done": sum(done for done, *_ in found), "seconds": seconds}


def _work(library: str, dsn: str, batch: int, name: str, gate: Any, spans: Any) -> None:
    """One process: imports first, for the time of imports is not that of the queue."""
    warnings.simplefilter("ignore")
    if library != "ours":
        logging.disable(logging.WARNING)
        __import__(library)
    gate.wait()
    spans.put(WORK[library](dsn, batch, name))


def _span(stamps: list[float]) -> Span:
    return (len(stamps), min(stamps), max(stamps)) if stamps else (0, 0.0, 0.0)


def _database(dsn: str, name: str) -> str:
    """The DSN of a new database on the same server."""
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if key != "options"}
    with psycopg.connect(make_conninfo(**parts), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    return make_conninfo(**{**parts, "dbname": name})


def main() -> None:
    """Print one drain's figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("library", choices=sorted(WORK))
    parser.add_argument("dsn")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--batch", type=int, default=100)
    asked = parser.parse_args()
    print(json.dumps(drained(asked.library, asked.dsn, asked.jobs, asked.processes, asked.batch)))


if __name__ == "__main__":
    main()
