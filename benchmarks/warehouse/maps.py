"""A map over all rows against a plain loop and Dask: `python benchmarks/warehouse/maps.py [--quick]`.

The function does nothing, so that what is left is overhead: pluck's lease, its child process, the row objects and the
durable cursor. The plain loop pages by key on one connection in this process. Dask (bag, its process scheduler) reads
the ranges that pluck would cut; nothing it does is durable. In every round each way has its turn; figures are medians
of the ratios of a round. At the end a map stores a result for every row, while the database counts.
"""

import argparse
import hashlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask.bag
import psycopg
from krea_data.krablet import Krablet, pluck, up
from krea_data.krablet.pluck import maps
from krea_data.krablet.pluck.keys import make_key
from krea_data.krablet.pluck.question import Job, Limits, Question

__all__ = ["measured"]

BATCH, WORKERS, RANGES = 256, 2, 16
_SELF = [sys.modules[__name__]]
_FIRST = "select id, blob, meta from images order by id limit %s"
_NEXT = "select id, blob, meta from images where id > %s order by id limit %s"
_RANGE = "select id, blob, meta from images where id > %s and (%s::text is null or id <= %s) order by id"
_SPANS = "select lower, upper from span where map = 'ranges'"
_WRITES = "select count(*), count(distinct id) from stored"
_COUNTING = """
create table stored (id text collate "C", n int);
create function count_stored() returns trigger language plpgsql as
  $$ begin insert into stored select id, 1 from new_rows; return null; end $$;
create trigger count_new after insert on result_score referencing new table as new_rows
  for each statement execute function count_stored();
create trigger count_old after update on result_score referencing new table as new_rows
  for each statement execute function count_stored()"""
Range = tuple[str, str, str | None]  # DSN, after, up to


def nothing(rows: Sequence[Any]) -> None:
    """The function that is mapped."""


def empty(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """The function whose results are stored."""
    return [{} for _ in rows]


def measured(dsns: Sequence[str], quick: bool = False, rows: int = 1_000_000) -> dict[str, float]:
    """The figures, by name; fills empty shards with rows of its own."""
    count, rounds = (3000, 1) if quick else (rows, 3)
    with tempfile.TemporaryDirectory() as folder, Krablet(dsns) as krablet:
        key_file = make_key(Path(folder) / "key")
        _fill(krablet, count)
        images = pluck.Table("images", krablet=krablet, key_file=key_file)
        ways: dict[str, Callable[[], int]] = {
            "plain": lambda: _plain(krablet.dsns),
            "pluck_1": lambda: _mapped(images, "noop", 1),
            "pluck_2": lambda: _mapped(images, "noop", WORKERS),
            "dask_2": lambda: _dask(_ranges(krablet)),
        }
        times: list[dict[str, float]] = [
            {"planning": _planned(krablet)} | {name: _timed(way, count) for name, way in ways.items()}
            for _ in range(rounds)
        ]
        return _figures(times, count) | _balance(_ranges(krablet)) | _stored(krablet, images, count)


def _fill(krablet: Krablet, count: int) -> None:
    """Rows of three sources, in no order."""
    numbers = list(range(count))
    random.Random(7).shuffle(numbers)
    with_ids = ((f"{('a', 'cdn', 'z')[n % 3]}/{hashlib.md5(b'%d' % n).hexdigest()}", n) for n in numbers)
    slot, shard = krablet.router.slot, krablet.router.shard
    connections = [psycopg.connect(dsn, autocommit=True) for dsn in krablet.dsns]
    copies = [connection.cursor().copy("copy images (slot, id, blob, meta) from stdin") for connection in connections]
    entered = [copy.__enter__() for copy in copies]
    for row_id, n in with_ids:
        meta = json.dumps({"source": row_id.partition("/")[0], "label": f"thing {n}", "style": "flat"})
        entered[shard(row_id)].write_row((slot(row_id), row_id, row_id[-32:], meta))
    for copy, connection in zip(copies, connections, strict=True):
        copy.__exit__(None, None, None)
        connection.execute("vacuum analyze images")
        connection.close()


def _plain(dsns: Sequence[str]) -> int:
    """A loop as one writes it: pages by key."""
    done = 0
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            rows = connection.execute(_FIRST, (BATCH,)).fetchall()
            while rows:
                nothing(rows)
                done += len(rows)
                rows = connection.execute(_NEXT, (rows[-1][0], BATCH)).fetchall()
    return done


def _mapped(images: pluck.Table, into: str, workers: int) -> int:
    # By value: the processes that call it need not import this file, and Dask with it.
    with images.map(nothing, into=into, batch=BATCH, workers=workers, by_value=_SELF, show=False) as handle:
        return handle.wait().rows


def _dask(ranges: Sequence[Range]) -> int:
    """The same over a bag of ranges; every one is a partition."""
    bag = dask.bag.from_sequence(ranges, npartitions=len(ranges))
    return sum(bag.map_partitions(_read).map_partitions(_answered).compute(num_workers=WORKERS))


def _read(ranges: Sequence[Range]) -> list[Any]:
    rows: list[Any] = []
    for dsn, after, upper in ranges:
        with psycopg.connect(dsn, autocommit=True) as connection:
            rows += connection.execute(_RANGE, (after, upper, upper)).fetchall()
    return rows


def _answered(rows: Sequence[Any]) -> list[int]:
    nothing(rows)
    return [len(rows)]


def _ranges(krablet: Krablet) -> list[Range]:
    """The ranges that the map has cut."""
    job = Job(name="ranges", question=Question(into="noop"), limits=Limits(batch=BATCH))
    maps.begin(krablet, job, RANGES // len(krablet.dsns))
    return [
        (dsn, lower, upper)
        for number, dsn in enumerate(krablet.dsns)
        for lower, upper in krablet.guarded(number, lambda c, _: c.execute(_SPANS).fetchall())
    ]


def _planned(krablet: Krablet) -> float:
    """How long it takes to cut, as a map does while its workers start."""
    _forget(krablet)
    started = time.perf_counter()
    _ranges(krablet)
    return time.perf_counter() - started


def _balance(ranges: Sequence[Range]) -> dict[str, float]:
    """How even the ranges are."""
    sizes = []
    for dsn, after, upper in ranges:
        with psycopg.connect(dsn, autocommit=True) as connection:
            sizes.append(connection.execute(_RANGE, (after, upper, upper)).rowcount)
    balance = max(sizes) / statistics.mean(sizes)
    print(f"{len(sizes)} ranges, the largest {balance:.3f} of the mean", flush=True)
    return {"pluck_balance": balance}


def _forget(krablet: Krablet) -> None:
    for number in range(len(krablet.dsns)):
        krablet.guarded(number, lambda c, _: c.execute("delete from span where map = 'ranges'"))


def _stored(krablet: Krablet, images: pluck.Table, count: int) -> dict[str, float]:
    """A map that stores a result for every row, each once by the database's own count."""
    krablet.declare_results("score")
    shards = range(len(krablet.dsns))
    for number in shards:
        krablet.guarded(number, lambda c, _: c.execute(_COUNTING))
    started = time.perf_counter()
    with images.map(empty, into="score", batch=BATCH, workers=WORKERS, by_value=_SELF, show=False) as handle:
        rows = handle.wait().rows
    seconds = time.perf_counter() - started
    counts = [krablet.guarded(number, lambda c, _: c.execute(_WRITES).fetchone()) or (0, 0) for number in shards]
    writes, ids = sum(line[0] for line in counts), sum(line[1] for line in counts)
    print(f"stored: {rows:,} rows in {seconds:.1f} s; {writes:,} results written for {ids:,} rows", flush=True)
    return {
        "pluck_stored_rows_per_s": rows / seconds,
        "pluck_lost": float(count - ids),
        "pluck_twice": float(writes - ids),
    }


def _timed(way: Callable[[], int], count: int) -> float:
    started = time.perf_counter()
    done = way()
    if done != count:
        raise RuntimeError(f"{done:,} of {count:,} rows were looked at")
    return time.perf_counter() - started


def _figures(times: Sequence[dict[str, float]], count: int) -> dict[str, float]:
    def ratios(name: str, other: str) -> Iterator[float]:
        return (one[other] / one[name] for one in times)

    for name in times[0]:
        seconds = statistics.median(one[name] for one in times)
        print(f"{name:10}{seconds:>8.2f} s, {1e6 * seconds / count:.2f} us a row", flush=True)
    overhead = statistics.median(1e6 * (one["pluck_1"] - one["plain"]) / count for one in times)
    return {
        "pluck_overhead_us": overhead,
        "pluck_vs_plain": statistics.median(ratios("pluck_1", "plain")),
        "pluck_2_vs_plain": statistics.median(ratios("pluck_2", "plain")),
        "pluck_vs_dask": statistics.median(ratios("pluck_2", "dask_2")),
        "pluck_planning_share": statistics.median(ratios("pluck_2", "planning")),
    }


def main() -> None:
    """Run on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, up(Path(folder)) as cluster:
        print(json.dumps(measured(cluster.dsns, given.quick, given.rows), indent=1))


if __name__ == "__main__":
    main()
