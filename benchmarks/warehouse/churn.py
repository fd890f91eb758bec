"""An hour of churn pressed into minutes: do the tables and indexes of the queue stay small?

`python benchmarks/warehouse/churn.py [--quick] [--variants]` starts a server of its own. Rows arrive, are claimed in
batches of 100, some fail and come again, the others are answered; and answers that are there are given anew. An hour
has `HOUR_ROWS` rows. A minute of it takes about a second, so this script does once a second what the server's
autovacuum does once a minute: it vacuums a table with more dead rows than its settings allow, as slowly as they say.
Sizes are printed as time goes on. `--variants` compares settings.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from krea_data.krablet import Krablet, up
from krea_data.rows import Claim, Result, Row
from krea_data.testing import FakeTask

sys.path.insert(0, str(Path(__file__).parent))  # also when it is imported from elsewhere

from schemas import empty_schema

HOUR_ROWS = 480_000
STEADY_ROWS = 2000  # that are always in the queue
ANSWERED_ROWS = 2000  # whose results are given anew, over and over
STEP_ROWS = 500
TABLES = ("queue_job", "result_again")
FAILING = 50  # one row in so many fails at its first try
PLAIN, EAGER = (0.2, 200), (0.02, 2000)  # scale factor and cost limit, as delivered and as the krablet sets them
_FULL = """
select n_dead_tup > 50 + %s * greatest(reltuples, 0) from pg_stat_user_tables join pg_class on oid = relid
where relid = %s::regclass"""
_SIZES = """
select pg_table_size('queue_job'), pg_relation_size('queue_job_pkey') + pg_relation_size('queue_job_by_time'),
  pg_table_size('result_again'), pg_indexes_size('result_again')"""
_TUPLES = """
select relname, n_tup_upd, n_tup_hot_upd from pg_stat_user_tables
where relname in ('queue_job', 'result_again') and schemaname = current_schema()"""
_WAL = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes at one moment."""

    queue: int
    queue_indexes: int
    results: int
    results_indexes: int


@dataclass(frozen=True, slots=True)
class Churned:
    """What an hour did."""

    sizes: list[Sizes]
    rows: int
    seconds: float
    wal_bytes: float
    hot: float  # share of the updates of results that touched no index
    vacuums: int

    def growth(self) -> float:
        """The largest size of the queue in the last third over that in the middle third."""
        totals = [size.queue + size.queue_indexes for size in self.sizes]
        third = max(1, len(totals) // 3)
        return max(totals[-third:]) / max(totals[-2 * third : -third] or totals[:third])


def measured(dsns: Sequence[str], quick: bool = False) -> dict[str, float]:
    """The figures of the settings that the krablet has."""
    churned = churn(dsns[0], 3000 if quick else HOUR_ROWS, talk=True)
    peak = max(size.queue + size.queue_indexes for size in churned.sizes)
    live = STEADY_ROWS * 100  # bytes that so many rows take at least
    print(
        f"queue at most {peak / 1e6:.1f} MB, growth {churned.growth():.2f}, vacuumed {churned.vacuums} times;"
        f" updates of results in place {churned.hot:.0%}; {churned.rows / churned.seconds:,.0f} rows/s"
    )
    return {"churn_growth": churned.growth(), "churn_peak_over_live": peak / live, "churn_hot": churned.hot}


def variants(dsn: str, rows: int) -> None:
    """A table of settings: fillfactor and autovacuum of the queue, fillfactor of the results."""
    print(
        "| queue: fillfactor, autovacuum | results: fillfactor | queue MB | its indexes MB | results MB | in place"
        " | WAL bytes a row | rows/s | vacuums |\n|---|---|---|---|---|---|---|---|---|"
    )
    for queue_fill, settings, results_fill in (
        (100, PLAIN, 100),
        (90, PLAIN, 80),
        (100, EAGER, 80),
        (90, EAGER, 100),
        (90, EAGER, 90),
        (90, EAGER, 80),
        (90, EAGER, 60),
        (70, EAGER, 80),
        (50, EAGER, 80),
    ):
        options = {"queue_job": f"fillfactor = {queue_fill}", "result_again": f"fillfactor = {results_fill}"}
        found = churn(dsn, rows, options, settings)
        last = found.sizes[-len(found.sizes) // 3 :]
        cells = [
            max(size.queue for size in last),
            max(size.queue_indexes for size in last),
            max(size.results + size.results_indexes for size in last),
        ]
        print(
            f"| {queue_fill}, {'eager' if settings == EAGER else 'as delivered'} | {results_fill} | "
            + " | ".join(f"{cell / 1e6:.1f}" for cell in cells)
            + f" | {found.hot:.0%} | {found.wal_bytes / rows:,.0f} | {rows / found.seconds:,.0f} | {found.vacuums} |",
            flush=True,
        )


def churn(
    dsn: str,
    rows: int,
    options: dict[str, str] | None = None,
    settings: tuple[float, int] = EAGER,
    *,
    talk: bool = False,
) -> Churned:
    """Send so many rows through a queue, and watch."""
    with ExitStack() as stack:
        own = stack.enter_context(empty_schema(dsn, "bench_churn"))
        table = stack.enter_context(Krablet([own], retry_s=0.05))
        watch = stack.enter_context(psycopg.connect(own, autocommit=True))
        task = FakeTask(name="job")
        table.register([task])
        table.add(Row(id=f"old/{n:06d}", blob="") for n in range(ANSWERED_ROWS))
        table.put("again", {f"old/{n:06d}": Result(value={"n": 0}) for n in range(ANSWERED_ROWS)})
        for name, setting in (options or {}).items():
            watch.execute(f"alter table {name} set ({setting})".encode())
        for name in TABLES:
            watch.execute(f"alter table {name} set (autovacuum_enabled = false)".encode())
        sizes: list[Sizes] = []
        (wal,) = watch.execute(_WAL).fetchone() or (0,)
        began = time.monotonic()
        vacuums = stack.enter_context(_vacuuming(own, *settings))
        for turn, step in enumerate(_steps(table, task, rows)):
            if step % max(STEP_ROWS, rows // 60 // STEP_ROWS * STEP_ROWS) == 0:
                sizes.append(Sizes(*(watch.execute(_SIZES).fetchone() or (0, 0, 0, 0))))
                if talk and len(sizes) % 6 == 1:
                    now = sizes[-1]
                    print(
                        f"after {step:>8,} rows: queue {now.queue / 1e6:5.1f} MB, its indexes"
                        f" {now.queue_indexes / 1e6:5.1f} MB, results given anew {now.results / 1e6:5.1f} MB and"
                        f" {now.results_indexes / 1e6:4.1f} MB",
                        flush=True,
                    )
            table.put(
                "again",
                {
                    f"old/{n % ANSWERED_ROWS:06d}": Result(value={"n": turn})
                    for n in range(turn * 200, turn * 200 + 200)
                },
            )
        seconds = time.monotonic() - began
        (wal_end,) = watch.execute(_WAL).fetchone() or (0,)
        table.guarded(0, lambda c, _: c.execute("select pg_stat_force_next_flush()"))
        stats = {line[0]: line[1:] for line in watch.execute(_TUPLES).fetchall()}
        updates, hot = stats["result_again"]
        return Churned(sizes, rows, seconds, float(wal_end - wal), hot / max(1, updates), len(vacuums))


def _steps(table: Krablet, task: FakeTask, rows: int) -> Iterator[int]:
    """Rows so far, after every `STEP_ROWS` of them."""
    table.add(Row(id=f"job/{n:08d}", blob="") for n in range(STEADY_ROWS))
    for start in range(0, rows, STEP_ROWS):
        table.add(Row(id=f"job/{STEADY_ROWS + n:08d}", blob="") for n in range(start, start + STEP_ROWS))
        done = 0
        while done < STEP_ROWS:  # those that fail come again, so the queue stays as long as it is
            claims = table.claim(task, "w", min(100, STEP_ROWS - done), 600.0)
            failed = {claim for claim in claims if claim.attempt == 1 and _fails(claim)}
            for claim in failed:
                table.fail("job", claim, "try again")
            done += table.complete(
                "job", {claim: Result(value={"ok": True}) for claim in claims if claim not in failed}
            )
        yield start + STEP_ROWS


def _fails(claim: Claim) -> bool:
    return int(claim.id[-4:]) % FAILING == 0


@contextmanager
def _vacuuming(dsn: str, scale: float, cost_limit: int) -> Iterator[list[float]]:
    """Vacuum as autovacuum does, but every second; gives the list of how long each time took."""
    took: list[float] = []
    stop = threading.Event()

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("set vacuum_cost_delay = '2ms'")
            connection.execute(f"set vacuum_cost_limit = {cost_limit}".encode())
            while not stop.wait(1.0):
                for name in TABLES:
                    full = connection.execute(_FULL, (scale, name)).fetchone()
                    if full is not None and full[0]:
                        began = time.monotonic()
                        connection.execute(f"vacuum (analyze) {name}".encode())
                        took.append(time.monotonic() - began)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--variants", action="store_true", help="compare settings")
    parser.add_argument("--json", action="store_true", help="the figures as JSON in the last line")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, up(Path(folder) / "cluster") as cluster:
        if asked.variants:
            variants(cluster.dsns[0], 3000 if asked.quick else HOUR_ROWS // 3)
            return
        figures = measured(cluster.dsns, asked.quick)
    if asked.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
