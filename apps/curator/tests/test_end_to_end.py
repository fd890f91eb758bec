"""Ingest, two workers, kill -9 in the middle of a batch, twice, run again: every row is answered exactly once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from krea_curator import compose
from krea_curator.cli import app
from krea_curator.compose import ORDER, Home, worker_command
from krea_data import shards
from krea_data.rows import Row
from typer.testing import CliRunner

pytestmark = pytest.mark.postgres


def invoke(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def wait_for(condition: Callable[[], object], timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Trap:
    """A pipe in place of a picture, so that whoever reads it waits."""

    def __init__(self, path: Path) -> None:
        self.path, self.aside, self.writer = path, path.with_suffix(".aside"), -1
        path.rename(self.aside)
        os.mkfifo(path)

    def catches(self) -> bool:
        """Whether somebody reads."""
        with suppress(OSError):
            self.writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        return self.writer >= 0

    def disarm(self) -> int:
        """Put the picture back, for others; returns the process that was caught."""
        found: list[int] = []
        wait_for(lambda: found.extend(readers(self.path)) or found)
        os.replace(self.aside, self.path)
        return found[0]

    def close(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)


def catch(traps: list[Trap]) -> int:
    """Wait for the first of the traps, take it from the list, and return whom it caught."""
    caught: list[Trap] = []
    wait_for(lambda: caught.extend(trap for trap in traps if trap.catches()) or caught)
    traps.remove(caught[0])
    return caught[0].disarm()


def readers(path: Path) -> list[int]:
    """The processes that have this file open."""
    found = []
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.path.samestat(os.stat(handle), os.stat(path)) and int(handle.parts[2]) != os.getpid():
                found.append(int(handle.parts[2]))
        except OSError:  # it has gone meanwhile
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux who reads a file")
def test_workers_and_pools_may_be_killed(home: Home, corpus: Path, tmp_path: Path, fate: dict) -> None:
    at = ("--home", home.folder)
    assert "40 new rows" in invoke("ingest", corpus, *at)
    pictures = {row.id: home.blobs.path(row.blob) for row in rows(home)}
    with ExitStack() as after:
        traps = [Trap(pictures[name]) for name in ("good/03", "good/20")]
        for trap in traps:
            after.callback(trap.close)
        pool = subprocess.Popen(worker_command(home.folder, workers=2), stderr=subprocess.DEVNULL)
        after.callback(lambda: (pool.kill(), pool.wait()))
        first = catch(traps)
        kill(first)  # the pool replaces it
        second = catch(traps)
        assert second != first
        pool.kill()
        pool.wait()
        kill(second)  # the other one ends by itself, its pool being gone
    assert "nothing left to do" in invoke("run", "--until-idle", "--workers", "2", *at)
    check(home, tmp_path / "shards", fate)


def rows(home: Home) -> list[Row]:
    with compose.open_table(home) as table:
        return list(table.scan())


def check(home: Home, out: Path, fate: dict) -> None:
    """The funnel is right, what is printed agrees with it, and the export holds what was kept."""
    at = ("--home", home.folder)
    with compose.open_table(home) as table:
        steps = compose.funnel(table)
        assert not any(stats.dead or stats.queued or stats.leased for stats in table.stats().values())
    assert {(step.task, why): number for step in steps for why, number in step.dropped.items()} == fate
    printed = invoke("funnel", *at)
    assert "27 of 40 rows kept" in printed
    assert "odd/nameless" in printed
    assert "27 pictures" in invoke("export", out, *at)
    kept = {row.id for row in rows(home) if all(map(row.kept_by, ORDER))}
    assert {row["id"] for row in shards.index(out)} == kept
    assert len((home.folder / "progress.jsonl").read_text().splitlines()) >= 2
