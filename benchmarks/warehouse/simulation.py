"""Many shards on one screen: a simulation, event by event, of workers that claim from shards and answer them.

A call keeps one of its shard's processors busy for a time drawn from measured ones; calls that find all of them busy
wait in line. A worker claims a batch, works on it, answers it, and goes on to the next shard, as a `Krablet` does. What
is left out: the network, and machines that fail.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Service", "simulate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """Measured times of calls for one batch, in seconds."""

    claim_s: Sequence[float]
    complete_s: Sequence[float]
    batch: int = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the simulation came to."""

    jobs_per_second: float
    busy: float  # share of the processors' time
    wait_s: float  # mean, of a call for a processor


def simulate(
    service: Service,
    *,
    shards: int,
    workers: int,
    processors: int = 2,
    machines: int | None = None,
    work_s: float = 0.0,
    seconds: float = 10.0,
    seed: int = 0,
) -> Outcome:
    """Let workers run for so many seconds on `shards` that lie on as many machines, or fewer, of some processors."""
    draw = random.Random(seed)
    free = [[0.0] * processors for _ in range(machines or shards)]  # when each processor is free again
    events = [(draw.random() * 0.01, worker, "claim", draw.randrange(shards)) for worker in range(workers)]
    heapq.heapify(events)
    jobs, busy, waited, calls = 0, 0.0, 0.0, 0
    while events[0][0] < seconds:
        now, worker, what, shard = heapq.heappop(events)
        line = free[shard % len(free)]
        began = max(now, heapq.heappop(line))
        took = draw.choice(service.claim_s if what == "claim" else service.complete_s)
        heapq.heappush(line, began + took)
        busy, waited, calls = busy + max(0.0, min(began + took, seconds) - began), waited + began - now, calls + 1
        if what == "claim":
            heapq.heappush(events, (began + took + work_s, worker, "complete", shard))
        else:
            jobs += service.batch
            heapq.heappush(events, (began + took, worker, "claim", (shard + 1) % shards))
    return Outcome(
        jobs_per_second=jobs / seconds,
        busy=busy / (seconds * processors * len(free)),
        wait_s=waited / max(1, calls),
    )
