"""What the tests run in processes of their own: python process.py WHAT ARGUMENTS (as JSON)."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krea_data.krablet import Krablet, up
from krea_data.krablet.moves import move as moves
from krea_data.rows import Result, Row
from krea_data.testing import FakeTask, rows
from krea_data.worker import run


class Slow(FakeTask):
    """A task that takes its time and signs its answers."""

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        time.sleep(0.01)
        return [Result(value={"by": sys.argv[0]}) for _ in rows]


def claim(dsns: list[str], worker: str) -> None:
    """Claim all there is, a few rows at a time, and print the ids."""
    with Krablet(dsns) as table:
        while claims := table.claim(FakeTask(), worker, 7, 1000.0):
            print(*(claim.id for claim in claims), sep="\n", flush=True)  # noqa: T201 - the test reads it


def work(dsns: list[str], worker: str, lease_s: float) -> None:
    """Work on two tasks until nothing is left."""
    with Krablet(dsns) as table:
        run(table, [Slow(name="first"), Slow(name="late", after=("first",))], worker=worker, batch=10, lease_s=lease_s)


def use(root: str, shards: int, seconds: float) -> None:
    """Use an embedded cluster for a while."""
    with up(Path(root), shards) as cluster, Krablet(cluster.dsns) as table:
        print(table.add(rows(20)), flush=True)  # noqa: T201 - the test reads it
        time.sleep(seconds)


def move(dsns: list[str], slots: list[int], to: int) -> None:
    """Move slots, saying so before."""
    with Krablet(dsns, patience_s=20.0) as table:
        print("ready", flush=True)  # noqa: T201 - the test reads it
        moves.move(table, slots, to, page_rows=5)


def main(what: str, arguments: dict[str, Any]) -> None:
    {"claim": claim, "work": work, "use": use, "move": move}[what](**arguments)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
