"""Where a map begins: the table, the rows of it that are wanted, and the function."""

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from krea_data.krablet.pluck.calls import Call, Here
from krea_data.krablet.pluck.crew import Crew
from krea_data.krablet.pluck.display import Nothing, board
from krea_data.krablet.pluck.functions import pickled, store
from krea_data.krablet.pluck.handle import Handle, lost
from krea_data.krablet.pluck.keys import key_path, load_key
from krea_data.krablet.pluck.maps import begin
from krea_data.krablet.pluck.question import Job, Keys, Limits, Question, key_range
from krea_data.krablet.pluck.walk import Done, Mapped, Worker
from krea_data.krablet.table import Krablet

__all__ = ["Table", "map_here"]

_RANGES = 8  # per worker, so that those who finish early find more to do


class Table:
    """The rows of a krablet, or those that a filter, tasks or a range of ids leave of them.

    `where` is a filter as in `krea_data.krablet.readers.filters`; `kept_by` names tasks that must have kept a row;
    `key` is a prefix of ids or a half-open range of them. Functions are signed with the key in `key_file`.
    """

    def __init__(
        self,
        name: str,
        *,
        krablet: Krablet,
        where: Mapping[str, Any] | None = None,
        kept_by: Sequence[str] = (),
        key: Keys = None,
        key_file: Path | None = None,
    ) -> None:
        if name != "images":
            raise ValueError(f"there is no table {name!r} to map over; the rows of a krablet are in 'images'")
        self.krablet, self.key_file = krablet, key_file
        self._where, self._bounds = _kept(where, kept_by), key_range(key)

    def question(self, into: str) -> Question:
        """What a map for this task asks."""
        low, high = self._bounds
        return Question(into=into, where=self._where, low=low, high=high)

    def map(
        self,
        fn: Call | type | Any,
        *,
        into: str,
        name: str | None = None,
        batch: int = 256,
        workers: int | None = None,
        timeout_s: float = 300.0,
        lease_s: float = 30.0,
        memory_mb: int | None = None,
        by_value: Iterable[ModuleType] = (),
        show: bool = True,
    ) -> Handle:
        """Start to call `fn` on batches of rows in `workers` processes, and store what it says as results of `into`.

        `fn` gives one `Result`, dict or None (nothing to store) for each row; a class is made once in every worker
        and called. A batch that raises, ends its process or takes longer than `timeout_s` is halved until the row at
        fault is alone; that one is reported. `memory_mb` bounds the address space of the process that calls `fn`. An
        unfinished map of this `name`, or else of the same question, goes on where it was; one that is done looks at
        the rows that have no result. 0 workers: only those that join from elsewhere. ValueError for whatever is wrong
        with the arguments or the function.
        """
        count = min(4, os.cpu_count() or 1) if workers is None else workers
        if count < 0:
            raise ValueError(f"workers {count} is below 0; use 0 to wait for workers from elsewhere")
        question = self.question(into)
        limits = Limits(batch=batch, lease_s=lease_s, timeout_s=timeout_s, memory_mb=memory_mb)
        key_file = key_path(self.krablet.dsns, self.key_file)
        signed = pickled(fn, load_key(key_file), by_value)
        job = Job(name=name or question.name, question=question, limits=limits, fn=signed.sha256)
        crew = Crew(name=job.name, dsns=(), key_file=key_file.absolute(), lost=lost(self.krablet, job.name))
        try:
            crew.start(count)  # to import takes longer than to plan
            self.krablet.guarded(0, lambda c, _: store(c, signed))
            begin(self.krablet, job, _parts(self.krablet, count))
        except BaseException:
            crew.stop()
            raise
        crew.dsns = list(self.krablet.dsns)  # by now with those of the newest shards
        crew.order()
        return Handle(self.krablet, job, crew, board() if show else Nothing())


def map_here(
    fn: Call,
    table: Krablet,
    *,
    question: Question,
    batch: int,
    lease_s: float,
    report: Done | None = None,
) -> Mapped:
    """Map in this very process, where `fn` needs no pickling and nothing guards against it; what this call did."""
    job = Job(name=question.name, question=question, limits=Limits(batch=batch, lease_s=lease_s))
    begin(table, job, _parts(table, 1))
    total = Mapped()

    def heard(step: Mapped) -> None:
        nonlocal total
        total += step
        if report is not None and step != Mapped():
            report(step)

    Worker(table, job, uuid.uuid4().hex, report=heard).work(Here(fn, question.into, batch))
    return total


def _parts(table: Krablet, workers: int) -> int:
    """Ranges of a shard."""
    return max(1, max(workers, 1) * _RANGES // len(table.dsns))


def _kept(where: Mapping[str, Any] | None, tasks: Sequence[str]) -> Mapping[str, Any] | None:
    """The filter, and these tasks have kept the row."""
    parts = [{"field": f"{task}.kept", "op": "eq", "value": True} for task in sorted(tasks)]
    if where is not None:
        parts.append(dict(where))
    return parts[0] if len(parts) == 1 else {"and": parts} if parts else None
