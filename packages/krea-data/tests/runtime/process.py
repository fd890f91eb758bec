"""What the tests run in processes of their own: python process.py WHAT ARGUMENTS (as JSON)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crashers import Slow
from krea_data.krablet import Krablet
from krea_data.memory import MemoryTable
from krea_data.rows import Result, Row
from krea_data.testing import rows
from krea_data.worker import run


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201 - the test reads it


@dataclass(frozen=True, kw_only=True, slots=True)
class Loud(Slow):
    """Says that it has begun."""

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        say(began=len(rows))
        return Slow.__call__(self, rows)


def drain(isolated: bool, seconds: float) -> None:
    """Work on a hundred rows, ten at once, until somebody asks for the end, and say what is left."""
    table, task = MemoryTable(rows(100)), (Slow if isolated else Loud)(seconds=seconds)
    if isolated:
        say(began=0)
    try:
        run(table, [task], worker="w", until_idle=False, limits={"fake": {"isolated": isolated}})
    finally:
        due = table.claim(task, "other", 100, 9.0)
        say(done=table.stats()["fake"].done, due=len(due), attempts=sorted({claim.attempt for claim in due}))


def work(dsns: list[str], worker: str, lease_s: float, seconds: float, isolated: bool = False) -> None:
    """Work on a krablet's rows until nothing is left."""
    with Krablet(dsns) as table:
        task = (Slow if isolated else Loud)(seconds=seconds, mark=worker)
        run(table, [task], worker=worker, lease_s=lease_s, limits={"fake": {"isolated": isolated}})


if __name__ == "__main__":
    {"drain": drain, "work": work}[sys.argv[1]](**json.loads(sys.argv[2]))
