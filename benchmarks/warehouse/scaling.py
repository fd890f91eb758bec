"""1, 2 and 4 shards, 1 to 16 workers on this machine; then 200 shards in a simulation fed with what was measured.

`python benchmarks/warehouse/scaling.py [--quick] [--json]` starts servers of its own, one a shard. Writers: one process
a shard puts results of its rows, a thousand at a time, which is how funnels share the work; `shards_2_vs_1` compares
two with one, median of interleaved rounds. Queues: so many workers in processes of their own claim and answer batches
of 100 from all shards. All shards and workers share the processors of this machine, so what is shown is that shards do
not get in each other's way; the simulation gives each shard a machine of its own.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from krea_data.krablet import Krablet, up
from krea_data.rows import Result, Row
from krea_data.testing import FakeTask

sys.path.insert(0, str(Path(__file__).parent))  # also when it is imported from elsewhere
from simulation import Service, simulate

SHARDS = (1, 2, 4)
WORKERS = (1, 2, 4, 8, 16)
ROUNDS = 3
ROWS = 4000  # that each writer puts results of
BATCH = 100
TASK = FakeTask(name="job")


def measured(dsns: Sequence[str] = (), quick: bool = False) -> dict[str, float]:
    """The figures; starts servers of its own, since a shard is a server."""
    shards, workers = ((1, 2), (1, 2)) if quick else (SHARDS, WORKERS)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        clusters = {n: stack.enter_context(up(Path(folder) / str(n), shards=n)).dsns for n in shards}
        figures = writers(clusters, quick)
        rates = queues(clusters, workers, quick)
        service = times(clusters[1], quick)
    figures |= {f"queue_{n}_shards_best": max(rates[n].values()) for n in shards}
    return {**figures, **simulated(service, rates, 2 if quick else 10)}


def writers(clusters: Mapping[int, Sequence[str]], quick: bool) -> dict[str, float]:
    """Upserts per second with one writer a shard."""
    rates: dict[int, list[float]] = {n: [] for n in clusters}
    seconds = 0.5 if quick else 3.0
    for dsns in clusters.values():
        with Krablet(dsns) as table:
            table.add(Row(id=f"row/{n:06d}", blob="") for n in range(ROWS * len(dsns)))
            table.declare_results("score")
    for _ in range(1 if quick else ROUNDS):
        for shards, dsns in clusters.items():
            found = _all([(_write, (dsns, shard, seconds)) for shard in range(shards)])
            rates[shards].append(sum(rows / took for rows, took in found))
    for shards, found in rates.items():
        print(f"{shards} shards, a writer each: {statistics.median(found):,.0f} upserts/s")
    ratios = {
        shards: statistics.median(many / one for many, one in zip(found, rates[1], strict=True))
        for shards, found in rates.items()
    }
    return {f"shards_{shards}_vs_1": ratio for shards, ratio in ratios.items() if shards > 1}


def queues(clusters: Mapping[int, Sequence[str]], workers: Sequence[int], quick: bool) -> dict[int, dict[int, float]]:
    """Jobs per second by shards and workers."""
    rates: dict[int, dict[int, float]] = {}
    jobs, seconds = (400, 0.5) if quick else (40_000, 1.5)
    for shards, dsns in clusters.items():
        rates[shards] = {}
        for count in workers:
            with Krablet(dsns) as table:
                table.register([TASK])
                left = table.pending("job")
                table.add(Row(id=f"{count}/{n:06d}", blob="") for n in range(max(0, jobs - left)))
            found = _all([(_work, (dsns, f"w{n}", seconds)) for n in range(count)])
            rates[shards][count] = sum(rows / took for rows, took in found)
        print(f"{shards} shards: " + ", ".join(f"{n} workers {rate:,.0f}/s" for n, rate in rates[shards].items()))
    return rates


def times(dsns: Sequence[str], quick: bool) -> Service:
    """How long calls take when nobody else calls."""
    claim_s: list[float] = []
    complete_s: list[float] = []
    with Krablet(dsns) as table:
        table.add(Row(id=f"time/{n:06d}", blob="") for n in range(1000 if quick else 10_000))
        while claims := _timed(claim_s, lambda: table.claim(TASK, "w", BATCH, 60.0)):
            if len(claims) < BATCH:
                break
            _timed(complete_s, lambda c=claims: table.complete("job", dict.fromkeys(c, Result())))
    return Service(claim_s=claim_s[:-1], complete_s=complete_s, batch=BATCH)


def simulated(service: Service, rates: dict[int, dict[int, float]], seconds: float) -> dict[str, float]:
    """The simulation beside what was measured, and then 200 shards."""
    processors = os.cpu_count() or 2
    for shards, found in rates.items():
        ours = {
            n: simulate(service, shards=shards, workers=n, processors=processors, machines=1, seconds=seconds)
            for n in found
        }
        print(
            f"simulated on one machine, {shards} shards: "
            + ", ".join(f"{n} workers {outcome.jobs_per_second:,.0f}/s" for n, outcome in ours.items())
        )
    one = simulate(service, shards=1, workers=4, seconds=seconds)
    figures: dict[str, float] = {}
    for shards, workers in ((10, 40), (50, 200), (200, 400), (200, 800), (200, 3200)):
        outcome = simulate(service, shards=shards, workers=workers, seconds=seconds)
        ratio = outcome.jobs_per_second / one.jobs_per_second
        print(
            f"simulated {shards} shards with {processors} processors each, {workers} workers without work of their own:"
            f" {outcome.jobs_per_second:,.0f} jobs/s, {ratio:.0f} times one shard with 4 workers,"
            f" busy {outcome.busy:.0%}, waits {1e3 * outcome.wait_s:.1f} ms"
        )
        figures[f"simulated_{shards}_shards_{workers}_workers"] = ratio
    return figures


def _write(dsns: Sequence[str], shard: int, seconds: float, gate: Any) -> tuple[int, float]:
    """Put results of one shard's rows."""
    with Krablet(dsns) as table:
        ids = [f"row/{n:06d}" for n in range(ROWS * len(dsns))]
        mine = [row_id for row_id in ids if table.router.shard(row_id) == shard]
        gate.wait()
        began, rows, turn = time.monotonic(), 0, 0
        while time.monotonic() - began < seconds:
            part = [mine[(rows + n) % len(mine)] for n in range(1000)]
            table.put("score", {row_id: Result(value={"turn": turn}) for row_id in part})
            rows, turn = rows + len(set(part)), turn + 1
        return rows, time.monotonic() - began


def _work(dsns: Sequence[str], name: str, seconds: float, gate: Any) -> tuple[int, float]:
    """Claim and answer, until time or jobs run out."""
    with Krablet(dsns) as table:
        table.register([TASK])
        gate.wait()
        began, rows, last = time.monotonic(), 0, time.monotonic()
        while last - began < seconds and (claims := table.claim(TASK, name, BATCH, 60.0)):
            rows += table.complete("job", dict.fromkeys(claims, Result()))
            last = time.monotonic()
        return rows, max(last - began, 1e-3)


def _all(calls: Sequence[tuple[Callable[..., tuple[int, float]], tuple[Any, ...]]]) -> list[tuple[int, float]]:
    """What the calls return, each in a process of its own, begun at the same moment."""
    context = multiprocessing.get_context("spawn")
    gate, found = context.Barrier(len(calls)), context.Queue()
    workers = [context.Process(target=_call, args=(work, given, gate, found)) for work, given in calls]
    for worker in workers:
        worker.start()
    answers = [found.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    return answers


def _call(work: Callable[..., tuple[int, float]], given: tuple[Any, ...], gate: Any, found: Any) -> None:
    found.put(work(*given, gate))


def _timed(seconds: list[float], call: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    answer = call()
    seconds.append(time.perf_counter() - began)
    return answer


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--json", action="store_true", help="the figures as JSON in the last line")
    asked = parser.parse_args()
    figures = measured((), asked.quick)
    if asked.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
