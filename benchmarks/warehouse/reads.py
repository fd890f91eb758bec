"""Reads through a reader against direct connections and PgBouncer: `python benchmarks/warehouse/reads.py [--quick]`.

One client process with 16 requests in flight, one server process, everything on this machine. In every round each way
has its turn; figures are medians of the ratios of a round. `point`: one row by id. `many`: 100 rows by id in a
request. `one point`, `one many`: the same with one request at a time. `scan`: all rows in order of id. At the end
2,000 clients read at once while the server's backends are counted.
PgBouncer (transaction mode, as many server connections as the reader) takes part where it is installed.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import psycopg
from krea_data.krablet import Krablet, up
from krea_data.krablet.connection import make_conninfo
from krea_data.krablet.readers.arrow import batches
from krea_data.krablet.rpc import Client
from krea_data.rows import Result
from krea_data.testing import rows
from psycopg.conninfo import conninfo_to_dict

__all__ = ["measured"]

CONNECTIONS, FLIGHT, MANY = 4, 16, 100
_POINT = (
    "select i.id, i.blob, i.meta::text, r.value::text, r.dropped from images i"
    " left join result_seen r on r.slot = i.slot and r.id = i.id where i.id = any(%s)"
)
_PAGE = (
    "select i.id, i.blob, i.meta::text, r.value::text, r.dropped from images i"
    " left join result_seen r on r.slot = i.slot and r.id = i.id where i.id > %s order by i.id limit 1000"
)
Ask = Callable[[list[str]], Awaitable[int]]  # rows by id; returns how many came
Scan = Callable[[], Awaitable[int]]  # all rows; returns how many came


def measured(dsns: Sequence[str], quick: bool = False) -> dict[str, float]:
    """The figures, by name; fills empty shards with rows of its own."""
    count, seconds, rounds, clients = (600, 0.2, 1, 60) if quick else (20_000, 2.0, 5, 2000)
    ids = [row.id for row in rows(count)]
    with Krablet(dsns) as krablet:
        krablet.add(rows(count))
        krablet.put("seen", {one: Result(value={"n": n, "words": "some words " * 5}) for n, one in enumerate(ids)})
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("vacuum analyze images, result_seen")
    with tempfile.TemporaryDirectory() as folder, _reader(dsns, Path(folder)) as http:
        address = f"unix:{folder}/reader"
        with _pgbouncer(dsns[0], Path(folder)) as pooled:
            found = asyncio.run(_compare(dsns, address, http, pooled, ids, seconds, rounds))
        return found | asyncio.run(_crowd(dsns, address, ids, clients, seconds))


async def _compare(
    dsns: Sequence[str],
    address: str,
    http: int,
    pooled: str | None,
    ids: list[str],
    seconds: float,
    rounds: int,
) -> dict[str, float]:
    """Rates of all ways in turn, and the medians of their ratios to direct connections."""
    async with AsyncExitStack() as stack:
        ways = {
            "direct": await stack.enter_async_context(_by_psycopg(dsns[0], FLIGHT)),
            "rpc": await stack.enter_async_context(_by_rpc(address)),
            "http": await stack.enter_async_context(_by_http(http)),
        }
        if pooled is not None:
            ways["pgbouncer"] = await stack.enter_async_context(_by_psycopg(pooled, FLIGHT, prepare=False))
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (ask, scan) in ways.items():
                rates[name].append(
                    {
                        "point": await _rate(ask, ids, 1, FLIGHT, seconds),
                        "many": await _rate(ask, ids, MANY, FLIGHT, seconds / 2),
                        "one point": await _rate(ask, ids, 1, 1, seconds / 2),
                        "one many": await _rate(ask, ids, MANY, 1, seconds / 2),
                        "scan": await _scan_rate(scan, len(ids), seconds / 2),
                    }
                )
    _print(rates)
    return _ratios(rates)


def _ratios(rates: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in rates.keys() - {"direct"}:
        for what in ("point", "many", "scan"):
            pairs = zip(rates[name], rates["direct"], strict=True)
            found[f"reads_{what}_{name}_vs_direct"] = statistics.median(
                mine[what] / other[what] for mine, other in pairs
            )
    for name, mine in rates.items():
        found[f"reads_many_vs_one_{name}"] = statistics.median(one["one many"] / one["one point"] for one in mine)
    return dict(sorted(found.items()))


def _print(rates: dict[str, list[dict[str, float]]]) -> None:
    columns = list(next(iter(rates.values()))[0])
    print(f"{'rows a second':14}" + "".join(f"{what:>11}" for what in columns))
    for name, found in rates.items():
        medians = (statistics.median(one[what] for one in found) for what in columns)
        print(f"{name:14}" + "".join(f"{median:>11,.0f}" for median in medians), flush=True)


async def _rate(ask: Ask, ids: list[str], size: int, flight: int, seconds: float) -> float:
    """Rows a second with `flight` requests for `size` random rows on the way."""
    found = 0
    end = time.perf_counter() + seconds

    async def one(seed: int) -> None:
        nonlocal found
        draw = random.Random(seed)
        while time.perf_counter() < end:
            got = await ask(draw.sample(ids, size) if size > 1 else [draw.choice(ids)])
            found += got  # not before the wait: the others count too

    start = time.perf_counter()
    await asyncio.gather(*map(one, range(flight)))
    return found / (time.perf_counter() - start)


async def _scan_rate(scan: Scan, count: int, seconds: float) -> float:
    found, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        found += (got := await scan())
        assert got == count, f"a scan gave {got} rows of {count}"
    return found / (time.perf_counter() - start)


@asynccontextmanager
async def _by_psycopg(dsn: str, connections: int, *, prepare: bool = True) -> AsyncIterator[tuple[Ask, Scan]]:
    """Connections of the client's own, each for one request at a time."""
    idle: asyncio.LifoQueue[psycopg.AsyncConnection] = asyncio.LifoQueue()
    for _ in range(connections):
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        connection.prepare_threshold = 0 if prepare else None
        idle.put_nowait(connection)

    async def ask(ids: list[str]) -> int:
        connection = await idle.get()
        try:
            return len(await (await connection.execute(_POINT, (ids,))).fetchall())
        finally:
            idle.put_nowait(connection)

    async def scan() -> int:
        connection = await idle.get()
        found, after = 0, ""
        try:
            while page := await (await connection.execute(_PAGE, (after,))).fetchall():
                found, after = found + len(page), page[-1][0]
            return found
        finally:
            idle.put_nowait(connection)

    try:
        yield ask, scan
    finally:
        while not idle.empty():
            await idle.get_nowait().close()


@asynccontextmanager
async def _by_rpc(address: str) -> AsyncIterator[tuple[Ask, Scan]]:
    """One connection to the reader."""
    async with await Client.connect(address) as client:

        async def ask(ids: list[str]) -> int:
            if len(ids) == 1:
                return (await client.call("get", id=ids[0])) is not None
            return len((await client.call("get_many", ids=ids))["rows"])

        async def scan() -> int:
            return _arrow_rows([piece async for piece in client.stream("scan")])

        yield ask, scan


@asynccontextmanager
async def _by_http(port: int) -> AsyncIterator[tuple[Ask, Scan]]:
    """Kept connections with a few lines of HTTP: a client library would cost more than the server."""
    idle: asyncio.LifoQueue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.LifoQueue()
    for _ in range(FLIGHT):
        idle.put_nowait(await asyncio.open_connection("127.0.0.1", port, limit=64 << 20))

    async def post(verb: str, args: dict[str, object]) -> bytes:
        body = json.dumps(args).encode()
        head = f"POST /v1/{verb} HTTP/1.1\r\nHost: a\r\nAccept: application/vnd.apache.arrow.stream\r\n"
        reader, writer = pair = await idle.get()
        try:
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"content-length: " in answer:
                return await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            parts: list[bytes] = []
            while size := int(await reader.readline(), 16):
                parts.append((await reader.readexactly(size + 2))[:-2])
            await reader.readline()
            return b"".join(parts)
        finally:
            idle.put_nowait(pair)

    async def ask(ids: list[str]) -> int:
        if len(ids) == 1:
            return json.loads(await post("get", {"id": ids[0]}))["value"] is not None
        return len(json.loads(await post("get_many", {"ids": ids}))["value"]["rows"])

    async def scan() -> int:
        return _arrow_rows([await post("scan", {})])

    try:
        yield ask, scan
    finally:
        while not idle.empty():
            idle.get_nowait()[1].close()


def _arrow_rows(pieces: list[bytes]) -> int:
    return sum(batch.num_rows for batch in batches(pieces))


async def _crowd(dsns: Sequence[str], address: str, ids: list[str], clients: int, seconds: float) -> dict[str, float]:
    """So many clients, each with a connection of its own and a get always on its way; the backends meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * clients)), hard))
    crowd = [Client(address, patience_s=60.0) for _ in range(clients)]
    for start in range(0, clients, 100):
        await asyncio.gather(*(client.reach() for client in crowd[start : start + 100]))
    waits: list[float] = []
    end = time.perf_counter() + 2 * seconds

    async def read(client: Client) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            assert await client.call("get", id=random.choice(ids)) is not None
            waits.append(time.perf_counter() - start)

    reading = asyncio.gather(*map(read, crowd))
    most = 0
    async with await psycopg.AsyncConnection.connect(dsns[0], autocommit=True) as connection:
        statement = (
            "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        while not reading.done():
            ((backends,),) = await (await connection.execute(statement)).fetchall()
            most = max(most, backends)
            await asyncio.sleep(0.05)
    await reading
    await asyncio.gather(*(client.close() for client in crowd))
    waits.sort()
    rate = len(waits) / (2 * seconds)
    p50, p99 = waits[len(waits) // 2], waits[int(0.99 * len(waits))]
    print(
        f"{clients} clients: {rate:,.0f} gets a second, p50 {1e3 * p50:.0f} ms, p99 {1e3 * p99:.0f} ms, {most} backends"
    )
    return {"reads_crowd_clients": clients, "reads_crowd_backends": most, "reads_crowd_per_s": rate}


@contextmanager
def _reader(dsns: Sequence[str], folder: Path) -> Iterator[int]:
    """A reader in a process of its own at the socket `reader` in the folder; its port for HTTP."""
    command = [sys.executable, __file__, "--serve", json.dumps([list(dsns), f"unix:{folder}/reader"])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(30)


def _serve(dsns: list[str], address: str) -> None:
    from krea_data.krablet.readers.process import run_reader

    def ready(reader: object) -> None:
        print(getattr(reader, "http", None), flush=True)

    run_reader(dsns, address, None, http="127.0.0.1:0", connections=CONNECTIONS, on_ready=ready)


@contextmanager
def _pgbouncer(dsn: str, folder: Path) -> Iterator[str | None]:
    """A DSN through PgBouncer, or None with a printed line where it is not installed."""
    binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if binary is None:
        print("no pgbouncer here; its rows are left out")
        yield None
        return
    known = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value}
    _, _, schema = known.pop("options", "").partition("search_path=")
    place = " ".join(f"{key}={known[key]}" for key in ("host", "port", "dbname", "user", "password") if key in known)
    query = f" connect_query='set search_path to {schema}'" if schema else ""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as own:
        Path(own).chmod(0o755)
        settings = Path(own, "pgbouncer.ini")
        settings.write_text(
            f"[databases]\nbench = {place}{query}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            f"unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {CONNECTIONS}\n"
            "max_client_conn = 4000\nignore_startup_parameters = extra_float_digits\n"
        )
        settings.chmod(0o644)
        process = subprocess.Popen(
            [binary, "-q", str(settings)], stderr=subprocess.DEVNULL, user=_unprivileged(known.get("host", ""))
        )
        try:
            pooled = make_conninfo(host="127.0.0.1", port=port, dbname="bench", user=known.get("user", "postgres"))
            yield pooled if _answers(pooled) else None
        finally:
            process.terminate()
            process.wait(30)


def _unprivileged(host: str) -> int | str | None:
    """Whom to run PgBouncer as, which refuses root: whoever may reach the server's socket."""
    if os.geteuid() != 0:
        return None
    return (host.startswith("/") and Path(host).stat().st_uid) or "nobody"


def _answers(dsn: str) -> bool:
    failed = ""
    for _ in range(10):
        try:
            psycopg.connect(dsn, connect_timeout=2, prepare_threshold=None).close()
            return True
        except psycopg.OperationalError as error:
            failed = str(error)
            time.sleep(0.1)
    print(f"pgbouncer does not answer, its rows are left out: {failed}")
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(*json.loads(options.serve))
        return
    with tempfile.TemporaryDirectory() as folder, up(Path(folder)) as cluster:
        for name, value in measured(cluster.dsns, options.quick).items():
            print(f"{name} {value:.3g}")


if __name__ == "__main__":
    main()
