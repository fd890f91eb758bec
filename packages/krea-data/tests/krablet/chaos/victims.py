"""What is killed: python victims.py WHAT ARGUMENTS (as JSON). Each runs until SIGTERM, or its death.

A worker's clock may be wrong by `skew_s`, as `time.time` and everything that asks the same clock sees it.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from krea_data.krablet import Krablet
from krea_data.krablet.funnels.process import run_funnel
from krea_data.krablet.moves import move as moves
from krea_data.krablet.readers.process import run_reader
from krea_data.krablet.readers.remote import RemoteTable
from krea_data.rows import Result, Row
from krea_data.worker import run

PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Signing:
    """A task whose answers differ every time, so that a second one to the same row shows."""

    name: str
    after: tuple[str, ...] = ()
    work_s: float = 0.005

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        """One signature for each row."""
        time.sleep(self.work_s)
        return [Result(value={"nonce": uuid4().hex, "pid": os.getpid()}) for _ in rows]


FIRST = Signing(name="first")
LATE = Signing(name="late", after=("first",))
TASKS = (FIRST, LATE)


def funnel(dsns: list[str], address: str, spool: str | None = None) -> None:
    """Serve writes."""
    run_funnel(dsns, address, spool=spool, patience_s=PATIENCE_S)


def reader(dsns: list[str], address: str) -> None:
    """Serve reads, and the work of those without a DSN."""
    run_reader(dsns, address, None, patience_s=PATIENCE_S, max_attempts=None)


def worker(
    dsns: list[str] | None = None,
    address: str | None = None,
    name: str | None = None,
    lease_s: float = 3.0,
    skew_s: float = 0.0,
    batch: int = 10,
) -> None:
    """Answer all tasks for ever; without a name it is another worker in each of its lives."""
    _skew(skew_s)
    name = name or f"nobody-{os.getpid()}-{uuid4().hex[:8]}"
    if address is not None:
        with RemoteTable(address, patience_s=PATIENCE_S) as table:
            run(table, TASKS, worker=name, batch=batch, lease_s=lease_s, until_idle=False)
    else:
        with Krablet(dsns or [], patience_s=PATIENCE_S, max_attempts=None) as table:
            run(table, TASKS, worker=name, batch=batch, lease_s=lease_s, until_idle=False)


def mover(dsns: list[str], ways: list[tuple[list[int], int]], rest_s: float) -> None:
    """Move slots to where each is to go, with a rest after each step, then end."""
    with Krablet(dsns, patience_s=PATIENCE_S) as table:
        for slots, to in ways:
            moves.move(table, slots, to, page_rows=20, on_progress=lambda _: time.sleep(rest_s))


def _skew(skew_s: float) -> None:
    if skew_s:
        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() + skew_s
        time.time_ns = lambda: real_ns() + int(skew_s * 1e9)


def main(what: str, arguments: dict[str, Any]) -> None:
    """Be one of them."""
    {"funnel": funnel, "reader": reader, "worker": worker, "mover": mover}[what](**arguments)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
