"""Ingest, two workers, kill -9 in the middle of a batch, twice, run again: every row is answered exactly once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


@contextmanager
def trap(path: Path) -> Iterator[Callable[[], int]]:
    """Put a pipe in place of a picture, so that whoever reads it waits.

    Yields a function that waits for somebody to be caught, puts the picture back for others, and returns the process.
    """
    aside = path.with_suffix(".aside")
    path.rename(aside)
    os.mkfifo(path)
    writers: list[int] = []

    def caught() -> bool:
        try:
            writers.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads
            return False
        return True

    def catch() -> int:
        wait_for(caught)
        found: list[int] = []
        wait_for(lambda: found.extend(readers(path)) or found)
        os.replace(aside, path)
        return found[0]

    try:
        yield catch
    finally:
        for writer in writers:
            os.close(writer)


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
    with ExitStack() as traps:
        catch_first, catch_second = (traps.enter_context(trap(pictures[name])) for name in ("good/03", "good/20"))
        pool = subprocess.Popen(worker_command(home.folder, workers=2), stderr=subprocess.DEVNULL)
        traps.callback(lambda: (pool.kill(), pool.wait()))
        first = catch_first()
        kill(first)  # the pool replaces it
        second = catch_second()
        assert second != first
        pool.kill()
        pool.wait()
        kill(second)  # the other one ends by itself, its pool being gone
    assert "nothing left to do" in invoke("run", "--until-idle", "--workers", 2, *at)
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
