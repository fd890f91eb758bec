"""How the queues stand, as numbers for autoscalers and as the text that Prometheus reads.

Nothing here counts a whole table: counts stop at 10,000, larger ones come from the server's statistics, and leases and
the oldest due row are looked for where an index begins. So it may be asked every few seconds, from any process. The
same numbers serve KEDA and the horizontal autoscaler of Kubernetes as external metrics, by Prometheus or by `values`.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import LiteralString

import psycopg
from psycopg import Connection, sql

from krea_data.krablet.dag import Dag
from krea_data.krablet.errors import ShardDown
from krea_data.krablet.names import queue
from krea_data.krablet.queues.bands import bands_of
from krea_data.krablet.queues.counts import DUE_ROWS, backlog_rows, due_rows
from krea_data.krablet.slots import HERE
from krea_data.krablet.table import Krablet

__all__ = ["CONTENT_TYPE", "Metrics", "Sample", "exposition", "sample_shard"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HELP = {
    "krablet_shard_up": ("gauge", "1 where the shard answers."),
    "krablet_backlog_rows": ("gauge", f"Rows that the task has yet to answer; an estimate above {DUE_ROWS}."),
    "krablet_due_rows": ("gauge", f"Rows that could be claimed now; counted up to {DUE_ROWS}."),
    "krablet_leased_rows": ("gauge", f"Rows that a worker holds, of the {DUE_ROWS} oldest of each priority."),
    "krablet_dead_rows": ("gauge", f"Rows that the task gave up on; counted up to {DUE_ROWS}."),
    "krablet_oldest_due_seconds": ("gauge", "For how long the oldest due row has been due; 0 where none is."),
    "krablet_paused": ("gauge", "1 where the task gives no claims."),
    "krablet_results_total": ("counter", "Results stored since the server's statistics began."),
    "krablet_results_per_second": ("gauge", "Results stored per second, over the last minutes at most."),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One task on one shard, at one moment."""

    backlog: int = 0
    due: int = 0
    leased: int = 0
    dead: int = 0
    oldest_due_s: float = 0.0
    paused: bool = False
    results: int = 0


@dataclass(slots=True)
class Metrics:
    """The numbers of a krablet. It remembers the last minutes, since a rate needs two moments; safe among threads."""

    krablet: Krablet
    window_s: float = 120.0
    _past: dict[tuple[str, int], deque[tuple[float, int]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        return exposition(self.values())

    def values(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Every number by name and labels; a shard that does not answer has `krablet_shard_up` 0 and nothing else."""
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {name: {} for name in _HELP}
        for number in range(len(self.krablet.dsns)):
            try:
                samples = self.krablet.shards.guarded(number, sample_shard, patience_s=0)
            except (ShardDown, psycopg.Error):
                samples = None
            found["krablet_shard_up"][("shard", str(number)),] = float(samples is not None)
            for task, sample in (samples or {}).items():
                labels = (("task", task), ("shard", str(number)))
                found["krablet_results_per_second"][labels] = self._rate(task, number, sample.results)
                for name, value in _numbers(sample):
                    found[name][labels] = value
        return found

    def backlog(self, task: str) -> float:
        """The task's backlog on all shards that answer: what a scaler divides by the rows that a worker should have."""
        return sum(v for labels, v in self.values()["krablet_backlog_rows"].items() if ("task", task) in labels)

    def _rate(self, task: str, number: int, results: int) -> float:
        now = time.monotonic()
        with self._lock:
            past = self._past.setdefault((task, number), deque())
            if past and results < past[-1][1]:  # the statistics began anew, after a crash
                past.clear()
            past.append((now, results))
            while len(past) > 2 and past[1][0] < now - self.window_s:
                past.popleft()
            then, before = past[0]
        return (results - before) / (now - then) if now > then else 0.0


def sample_shard(connection: Connection, dag: Dag) -> dict[str, Sample]:
    """The tasks of one shard that have queues. `StaleDag` is never raised: a task that is news comes next time."""
    with connection.transaction():
        connection.execute("set local statement_timeout = '5s'")
        stored = dict(connection.execute(_STORED).fetchall())
        paused = {name for (name,) in connection.execute("select name from task where paused").fetchall()}
        return {
            task: _sample(connection, dag, task, paused=task in paused, results=stored.get(f"result_{task}", 0))
            for task in sorted(dag.queued)
        }


def exposition(values: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]) -> str:
    """Numbers in the text format of Prometheus, version 0.0.4."""
    return "".join(f"{line}\n" for name, numbers in values.items() for line in _lines(name, numbers.items()))


_STORED = """
select relname::text, n_tup_ins + n_tup_upd from pg_stat_user_tables
where schemaname = current_schema() and starts_with(relname, 'result_')"""
_OLDER: LiteralString = f"""
(select run_at, held_until from {{queue}} where priority = {{band}} and run_at <= now() and {HERE}
order by run_at, n limit {{most}})"""
_DEAD: LiteralString = (
    f"select count(*) from (select from dead where task = {{task}} and {HERE} limit {{most}}) as found"
)
_STATE: LiteralString = """
select count(*) filter (where held_until > now()),
  coalesce(extract(epoch from now() - min(run_at) filter (where held_until <= now())), 0)::float8
from ({older}) as older"""


def _sample(connection: Connection, dag: Dag, task: str, *, paused: bool, results: int) -> Sample:
    names = {"queue": queue(task), "task": sql.Literal(task), "most": sql.Literal(DUE_ROWS)}
    older = [sql.SQL(_OLDER).format(band=sql.Literal(band), **names) for band in bands_of(dag, task)]
    state = connection.execute(sql.SQL(_STATE).format(older=sql.SQL(" union all ").join(older))).fetchone()
    leased, oldest_due_s = state if state is not None else (0, 0.0)
    dead = connection.execute(sql.SQL(_DEAD).format(**names)).fetchone()
    return Sample(
        backlog=backlog_rows(connection, task),
        due=due_rows(connection, task),
        leased=leased,
        dead=dead[0] if dead is not None else 0,
        oldest_due_s=oldest_due_s,
        paused=paused,
        results=results,
    )


def _numbers(sample: Sample) -> Iterator[tuple[str, float]]:
    yield "krablet_backlog_rows", sample.backlog
    yield "krablet_due_rows", sample.due
    yield "krablet_leased_rows", sample.leased
    yield "krablet_dead_rows", sample.dead
    yield "krablet_oldest_due_seconds", sample.oldest_due_s
    yield "krablet_paused", float(sample.paused)
    yield "krablet_results_total", sample.results


def _lines(name: str, numbers: Iterable[tuple[tuple[tuple[str, str], ...], float]]) -> Iterator[str]:
    kind, said = _HELP[name]
    yield f"# HELP {name} {said}"
    yield f"# TYPE {name} {kind}"
    for labels, value in numbers:
        names = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        yield f"{name}{{{names}}} {value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
