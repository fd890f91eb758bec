"""What it costs to move slots while others work: `python benchmarks/warehouse/moves.py [--quick]`.

Two processes put results on random rows, add rows, and claim and complete. Windows without a move and windows in which
slots go back and forth between two shards take turns; the ratio of the rates is the median over the pairs. In the end
every row must be there once, with the last value that was acknowledged for it, and with exactly one completed claim.
The pause is how long the writers of a shard wait while a slot is handed over.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from krea_data.krablet import Krablet, up
from krea_data.krablet.connection import make_conninfo
from krea_data.krablet.moves.move import Moved, move
from krea_data.rows import Result, Row
from krea_data.testing import FakeTask
from psycopg import sql

__all__ = ["measured"]

TASK = FakeTask(name="job")
BATCH = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is done."""

    rows: int
    writers: int
    window_s: float
    pairs: int


QUICK = Sizes(rows=300, writers=1, window_s=0.5, pairs=1)
FULL = Sizes(rows=50_000, writers=2, window_s=8.0, pairs=5)


def write(dsns: list[str], number: int, rows: int) -> None:
    """Work until standard input closes, then print what was done: the moment and time of every call, and its effect."""
    ids = [_id(n) for n in range(rows)][number::2]
    done: dict[str, Any] = {"calls": [], "put": {}, "completed": [], "added": []}
    chance = random.Random(number)
    with Krablet(dsns) as table:
        print("ready", flush=True)
        step = 0
        while sys.stdin.readline().strip() == "go":
            end = time.time() + float(sys.stdin.readline())
            while time.time() < end:
                step += 1
                _turn(table, number, step, chance.sample(ids, min(BATCH, len(ids))), done)
            print("done", flush=True)
    print(json.dumps(done), flush=True)


def _turn(table: Krablet, number: int, step: int, ids: list[str], done: dict[str, Any]) -> None:
    began = time.time()
    table.put("score", {row_id: Result(value={"step": step}) for row_id in ids})
    done["put"].update(dict.fromkeys(ids, step))
    put = time.time()
    fresh = [f"new/{number}/{step}/{n}" for n in range(5)]
    done["added"] += fresh[: table.add([Row(id=row_id, blob="0" * 64) for row_id in fresh])]
    added = time.time()
    claims = table.claim(TASK, f"writer {number}", BATCH, 1000.0)
    if table.complete(TASK.name, dict.fromkeys(claims, Result(value={"by": number}))) != len(claims):
        raise RuntimeError("a lease was lost")
    done["completed"] += [claim.id for claim in claims]
    ended = time.time()
    done["calls"] += [(began, put - began), (put, added - put), (added, ended - added)]


def measured(dsns: Sequence[str], quick: bool = False) -> dict[str, float]:
    """The rate beside moves over the rate without, the pauses in seconds, rows lost or done twice, slots a second."""
    size = QUICK if quick else FULL
    places = _schemas(dsns)
    moves: list[tuple[float, Moved]] = []
    with Krablet(places, bits=6) as table:
        table.add(Row(id=_id(n), blob="0" * 64, meta={"n": n}) for n in range(size.rows))
        table.register([TASK])
        table.declare_results("score")
        writers = [_writer(places, number, size.rows) for number in range(size.writers)]
        windows = _windows(table, writers, size, moves)
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.close()
        done = [_last(writer) for writer in writers]
        lost = _lost(table, done, size)
    return _figures(windows, moves, [call for one in done for call in one["calls"]], lost)


def _windows(
    table: Krablet, writers: Sequence["subprocess.Popen[str]"], size: Sizes, moves: list[tuple[float, Moved]]
) -> list[tuple[float, float, bool]]:
    """Run the windows and return their begin, end, and whether slots moved."""
    found: list[tuple[float, float, bool]] = []
    for turn in range(2 * size.pairs):
        moving = bool(turn % 2) != bool(turn // 2 % 2)
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(f"go\n{size.window_s}\n")
            writer.stdin.flush()
        began = time.time()
        while moving and time.time() < began + size.window_s - 0.3:
            slot = random.randrange(1 << table.router.bits)
            move(table, [slot], 1 - table.router.shards[slot], on_progress=lambda m: moves.append((time.time(), m)))
        for writer in writers:
            _heard(writer, "done")
        found.append((began, began + size.window_s, moving))
    return found


def _figures(
    windows: Sequence[tuple[float, float, bool]],
    moves: Sequence[tuple[float, Moved]],
    calls: Sequence[tuple[float, float]],
    lost: int,
) -> dict[str, float]:
    counts = [sum(began <= at < end for at, _ in calls) for began, end, _ in windows]
    ratios = []
    for first in range(0, len(windows), 2):
        pair = {windows[n][2]: counts[n] for n in (first, first + 1)}
        ratios.append(pair[True] / max(1, pair[False]))
    pauses = sorted(moved.pause_s for _, moved in moves if moved.step == "purged") or [0.0]
    beside = sorted(took for began, end, moving in windows if moving for at, took in calls if began <= at < end) or [
        0.0
    ]
    seconds = sum(end - began for began, end, moving in windows if moving)
    found = {
        "move_foreground": statistics.median(ratios),
        "move_pause_p99_s": pauses[int(0.99 * (len(pauses) - 1))],
        "move_pause_p50_s": statistics.median(pauses),
        "move_call_p99_s": beside[int(0.99 * (len(beside) - 1))],
        "move_call_max_s": beside[-1],
        "move_lost": float(lost),
        "moves_per_s": len(pauses) / seconds,
    }
    print(f"{len(pauses)} slots moved in {seconds:.0f} s, {lost} rows lost or done twice", flush=True)
    pairs = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"calls beside moves {found['move_foreground']:.2f} of those without (pairs {pairs})", flush=True)
    print(f"pause {found['move_pause_p50_s']:.3f} s, p99 {found['move_pause_p99_s']:.3f} s", flush=True)
    print(f"calls p99 {found['move_call_p99_s']:.3f} s, longest {found['move_call_max_s']:.3f} s", flush=True)
    return found


def _lost(table: Krablet, done: Sequence[dict[str, Any]], size: Sizes) -> int:
    """How many rows are missing, came twice, lack an acknowledged value, or were completed twice or never."""
    while claims := table.claim(TASK, "rest", 1000, 1000.0):
        done[0]["completed"] += [claim.id for claim in claims]
        table.complete(TASK.name, dict.fromkeys(claims, Result()))
    found = Counter(row.id for row in table.scan())
    values = {row.id: row.results["score"].value["step"] for row in table.scan(kept_by=["score"])}
    wanted = {_id(n) for n in range(size.rows)} | {row_id for one in done for row_id in one["added"]}
    completed = Counter(row_id for one in done for row_id in one["completed"])
    wrong = sum(values.get(row_id) != step for one in done for row_id, step in one["put"].items())
    wrong += sum(found[row_id] != 1 for row_id in wanted | found.keys())
    return wrong + sum(completed[row_id] != 1 for row_id in wanted | completed.keys())


def _id(number: int) -> str:
    return f"row/{number:07d}"


def _schemas(dsns: Sequence[str]) -> list[str]:
    """Two empty shards, on two servers if there are as many."""
    name = f"moves_{uuid.uuid4().hex[:8]}"
    places: list[str] = []
    for number, dsn in enumerate((dsns[0], dsns[-1])):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("create schema {}").format(sql.Identifier(f"{name}_{number}")))
        places.append(make_conninfo(dsn, options=f"-csearch_path={name}_{number}"))
    return places


def _writer(dsns: Sequence[str], number: int, rows: int) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--writer", json.dumps([list(dsns), number, rows])]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _heard(writer, "ready")
    return writer


def _heard(writer: "subprocess.Popen[str]", word: str) -> None:
    assert writer.stdout is not None
    if (said := writer.stdout.readline().strip()) != word:
        raise RuntimeError(f"a writer ended with {writer.wait()} and said {said!r}")


def _last(writer: "subprocess.Popen[str]") -> dict[str, Any]:
    assert writer.stdout is not None
    found = json.loads(writer.stdout.read())
    writer.wait()
    return found


def main() -> None:
    """Run on two servers of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--writer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.writer:
        write(*json.loads(given.writer))
        return
    with tempfile.TemporaryDirectory() as folder, up(Path(folder), 2) as cluster:
        print(json.dumps(measured(cluster.dsns, given.quick)))


if __name__ == "__main__":
    main()
