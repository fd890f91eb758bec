"""A worker of a map, here or on any machine that reaches the shards:

    KRABLET_DSNS=... KRABLET_KEY_FILE=... python -m krea_data.krablet.pluck.worker NAME

`KRABLET_DSNS` holds the DSNs of all shards, one a line; `NAME` is the map's. It ends when the map is done, cancelled or
failed; at SIGTERM it gives its range back and goes. With --stdin it takes its orders as a line of JSON from standard
input, and goes when that is closed. It ends with 3 if it cannot take part, after a sentence that says why.
"""

import argparse
import gc
import json
import os
import platform
import select
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from krea_data.krablet.connection import patiently
from krea_data.krablet.errors import KrabletError
from krea_data.krablet.pluck.functions import RefusedError, checked, fetch
from krea_data.krablet.pluck.hand import BrokenError, Hand
from krea_data.krablet.pluck.keys import key_path, load_key
from krea_data.krablet.pluck.maps import found, give_up
from krea_data.krablet.pluck.orders import CANNOT, DSNS, Orders
from krea_data.krablet.pluck.walk import Worker
from krea_data.krablet.table import Krablet

__all__ = ["main"]

_PATIENCE_S = 60.0  # for shards that do not answer when this starts


def main(arguments: Sequence[str]) -> int:
    """Work; returns the exit code. Standard input that is closed without orders means that there is nothing to do."""
    parser = argparse.ArgumentParser(prog="krea_data.krablet.pluck.worker", description="a worker of a map")
    parser.add_argument("name", nargs="?", help="the map's name")
    parser.add_argument("--stdin", action="store_true", help="take orders from standard input")
    options = parser.parse_args(arguments)
    told = _Told(options.stdin)
    try:
        orders = _orders(options)
        if orders is not None:
            _work(orders, told.leave)
    except (KrabletError, ValueError, LookupError) as error:
        sys.stderr.write(f"{error.args[0] if error.args else error}\n")
        return CANNOT
    return 0


def _orders(options: argparse.Namespace) -> Orders | None:
    if options.stdin:
        line = sys.stdin.readline()
        return Orders(**json.loads(line)) if line else None
    dsns = os.environ.get(DSNS, "").split("\n")
    if not options.name or not any(dsns):
        raise ValueError(f"name the map as the argument, and the DSNs of all shards in {DSNS}, one a line")
    worker = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    return Orders(name=options.name, dsns=[dsn for dsn in dsns if dsn], worker=worker)


def _work(orders: Orders, leave: Callable[[], bool]) -> None:
    sys.path += [entry for entry in orders.path if entry not in sys.path]
    with patiently(lambda: Krablet(orders.dsns), _PATIENCE_S) as table:
        job = found(table, orders.name)
        try:
            blob = _function(table, job.fn, orders)
            worker = Worker(table, job, orders.worker, leave=leave)
            hand = Hand(blob, job.question.into, job.limits, worker.pulse)
            gc.freeze()  # what is imported stays: no need to look through it again for every few pages
            try:
                hand.load()
                worker.work(hand)
            finally:
                hand.close()
        except (RefusedError, BrokenError) as error:
            give_up(table, orders.name, str(error))
            raise


def _function(table: Krablet, sha256: str | None, orders: Orders) -> bytes:
    """The checked blob of the map's function."""
    if sha256 is None:
        raise RefusedError(f"the map {orders.name!r} was started without a stored function; nobody can join it")
    try:
        key = load_key(key_path(orders.dsns, Path(orders.key_file) if orders.key_file else None))
    except ValueError as error:
        raise RefusedError(str(error)) from error
    return checked(table.guarded(0, lambda c, _: fetch(c, sha256)), key)


class _Told:
    """Whether this worker was told to go."""

    def __init__(self, stdin: bool) -> None:
        self._term = False
        self._poll = select.poll() if stdin else None
        if self._poll is not None:
            self._poll.register(0, select.POLLIN)
        signal.signal(signal.SIGTERM, self._go)
        signal.signal(signal.SIGINT, self._go)

    def leave(self) -> bool:
        """After SIGTERM, or when standard input was closed."""
        return self._term or (self._poll is not None and bool(self._poll.poll(0)))

    def _go(self, *_: object) -> None:
        self._term = True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
