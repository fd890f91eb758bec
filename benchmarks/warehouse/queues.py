"""Jobs per second through a queue against pgqueuer and procrastinate, and the claim while a snapshot is pinned.

`python benchmarks/warehouse/queues.py [--quick] [--json]` starts a server of its own. All run on the same server with
the same settings (fsync and synchronous_commit on), batch 100, four processes; in every round each library empties its
queue of no-op jobs, and the ratio is the median of the rounds' ratios. For the peers the clock runs from the first to
the last call of the job's function, without the first claim and the last commit; for ours from before the first claim
until the last result is durable. Then a steady stream of jobs is worked on, first freely, then while a REPEATABLE READ
reader stays open for a minute: the claim must not slow down.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
from krea_data.krablet import Krablet, up
from krea_data.rows import Result, Row
from krea_data.testing import FakeTask

sys.path.insert(0, str(Path(__file__).parent))  # also when it is imported from elsewhere

from schemas import empty_schema

JOBS = {"ours": 50_000, "pgqueuer": 20_000, "procrastinate": 500}
QUICK_JOBS = {"ours": 600, "pgqueuer": 400, "procrastinate": 40}
ROUNDS = 7
PER_SECOND = 2000  # jobs of the steady stream
BATCH = 100


def measured(dsns: Sequence[str], quick: bool = False) -> dict[str, float]:
    """The figures; `dsns` name a server where schemas and databases may be made."""
    return {**peers(dsns[0], quick), **pinned(dsns[0], quick)}


def peers(dsn: str, quick: bool = False) -> dict[str, float]:
    """Jobs per second of each library, and ours over theirs."""
    rates: dict[str, list[float]] = {library: [] for library in JOBS}
    for turn in range(1 if quick else ROUNDS):
        for library in list(JOBS) if turn % 2 == 0 else list(reversed(JOBS)):
            rates[library].append(_rate(dsn, library, (QUICK_JOBS if quick else JOBS)[library], 2 if quick else 4))
        print(f"round {turn + 1}: " + ", ".join(f"{library} {found[-1]:,.0f}/s" for library, found in rates.items()))
    figures = {f"jobs_{library}_per_second": statistics.median(found) for library, found in rates.items()}
    for library in ("pgqueuer", "procrastinate"):
        ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates[library], strict=True)]
        figures[f"jobs_vs_{library}"] = statistics.median(ratios)
        print(f"ours / {library}: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    return figures


def pinned(dsn: str, quick: bool = False) -> dict[str, float]:
    """How much slower a claim is at the end of a pinned snapshot's life, and how often each job was claimed."""
    free_s, held_s, tail_s = (1.0, 2.0, 1.0) if quick else (15.0, 60.0, 15.0)
    with empty_schema(dsn, "bench_queues") as own, Krablet([own]) as table:
        stream = Stream(table, PER_SECOND // 10 if quick else PER_SECOND)
        with stream.running():
            stream.run(free_s / 3)  # caches and plans
            stream.claims_s.clear()
            stream.run(free_s)
            free = _middle(stream.claims_s)
            with psycopg.connect(own) as reader:
                reader.execute("set idle_in_transaction_session_timeout = 0")
                reader.commit()
                reader.execute("set transaction isolation level repeatable read")
                reader.execute("select count(*) from images")
                stream.run(held_s - tail_s)
                stream.claims_s.clear()
                stream.run(tail_s)
                held = _middle(stream.claims_s)
                dead = reader.execute(
                    "select n_dead_tup from pg_stat_user_tables where relname = 'queue_job'"
                ).fetchone()
        stream.finish()
        claimed, done = stream.claimed, stream.done
    print(
        f"claim of up to {BATCH}: {1e3 * free:.2f} ms, after {held_s:.0f} s under a snapshot {1e3 * held:.2f} ms;"
        f" {dead[0] if dead else 0:,} dead rows; claimed / done = {claimed / done:.3f}"
    )
    return {"claim_under_snapshot": held / free, "claimed_per_done": claimed / done}


class Stream:
    """Jobs that come at a steady rate, and two workers that claim and answer them."""

    def __init__(self, table: Krablet, per_second: int) -> None:
        self.table, self.per_second = table, per_second
        self.claims_s: list[float] = []
        self.claimed = self.done = 0
        self._stop, self._lock, self._names = threading.Event(), threading.Lock(), count()
        self._task = FakeTask(name="job")
        table.register([self._task])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Two workers at work."""
        workers = [threading.Thread(target=self._work, args=(f"w{n}",), daemon=True) for n in range(2)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()

    def run(self, seconds: float) -> None:
        """Let jobs come for so long."""
        began = time.monotonic()
        added = 0
        while (passed := time.monotonic() - began) < seconds:
            wanted = int(passed * self.per_second) - added
            added += self.table.add(Row(id=f"job/{next(self._names):08d}", blob="") for _ in range(wanted))
            time.sleep(0.05)

    def finish(self) -> None:
        """Answer what is left."""
        while self._turn("last"):
            pass

    def _work(self, name: str) -> None:
        while not self._stop.is_set():
            if not self._turn(name):
                time.sleep(0.02)

    def _turn(self, name: str) -> int:
        began = time.perf_counter()
        claims = self.table.claim(self._task, name, BATCH, 60.0)
        seconds = time.perf_counter() - began
        done = self.table.complete("job", dict.fromkeys(claims, Result())) if claims else 0
        with self._lock:
            if claims:
                self.claims_s.append(seconds)
            self.claimed += len(claims)
            self.done += done
        return len(claims)


def _rate(dsn: str, library: str, jobs: int, processes: int) -> float:
    """One drain, in processes of their own, on tables of their own."""
    script = Path(__file__).with_name("drains.py")
    with empty_schema(dsn, "bench_queues") as own:
        command = [sys.executable, str(script), library, own, "--jobs", str(jobs), "--processes", str(processes)]
        done = subprocess.run([*command, "--batch", str(BATCH)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the drain of {library} failed: {done.stderr[-2000:]}")
        found = json.loads(done.stdout)
    if found["done"] != jobs:
        raise RuntimeError(f"{library} did {found['done']} of {jobs} jobs")
    return found["done"] / found["seconds"]


def _middle(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--json", action="store_true", help="the figures as JSON in the last line")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, up(Path(folder) / "cluster") as cluster:
        figures = measured(cluster.dsns, asked.quick)
    if asked.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
