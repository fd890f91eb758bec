"""Embedded servers on demand: `with up(folder, shards=2) as cluster: Krablet(cluster.dsns)`.

The first user of a folder starts its servers, the last one stops them, in whatever processes they are and however they
end. The data stay in the folder. For servers that run elsewhere, give `Krablet` their DSNs instead.
"""

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from krea_data.krablet.connection import make_conninfo, refusal
from krea_data.krablet.embedded.folder import FIRST_PORT, Folder, Hold, explained
from krea_data.krablet.errors import ServerError

__all__ = ["Cluster", "up"]

_STOP_S = 200
_ROOM_BYTES = 64 << 20  # a server needs some for its log and a segment of its write-ahead log
_PACKAGE = Path(__file__).parents[3]  # where krea_data is imported from


class Cluster:
    """Servers that run as long as this is open."""

    def __init__(self, root: Path, dsns: tuple[str, ...], use: Hold) -> None:
        self.root = root
        self.dsns = dsns
        self._use: Hold | None = use

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop using the servers; returns when they have stopped if nobody else uses them."""
        if self._use is None:
            return
        self._use.release()
        self._use = None
        _wait_for_the_end(Folder(self.root))

    def grow(self, shards: int, *, timeout_s: float = 300.0) -> None:
        """Have more servers while the others run on; then `dsns` has theirs too, for `krablet.move.add_shard`.

        ValueError for fewer than there are, `ServerError` where one cannot be made: then all is as it was.
        """
        folder = Folder(self.root)
        with explained(folder.root), folder.gate():
            folder.error.unlink(missing_ok=True)
            folder.grow(shards)
            if not folder.kept():
                _start_keeper(folder, shards)
            dsns = _dsns(folder, shards)
        _wait_for_answers(folder, dsns, timeout_s)
        self.dsns = dsns


def up(root: Path, shards: int | None = None, *, timeout_s: float = 300.0) -> Cluster:
    """Use the servers of a folder, after creating and starting them if need be; the number of shards is kept.

    `timeout_s` covers the recovery after a crash. ValueError for another number of shards than the folder has,
    `ServerError` for everything that keeps servers from running there.
    """
    folder = Folder(Path(root).absolute())
    with explained(folder.root):
        folder.root.mkdir(parents=True, exist_ok=True)
        with folder.gate():
            shards = folder.settle(shards)
            use = folder.use()
            try:
                if not folder.kept():
                    _start_keeper(folder, shards)
                dsns = _dsns(folder, shards)
            except BaseException:
                use.release()
                raise
    cluster = Cluster(folder.root, dsns, use)
    try:
        _wait_for_answers(folder, dsns, timeout_s)
    except BaseException:
        cluster.close()
        raise
    return cluster


def _start_keeper(folder: Folder, shards: int) -> None:
    """Start the process that starts the servers; it reports what it can check at once, and goes on by itself."""
    folder.error.unlink(missing_ok=True)
    path = os.pathsep.join([str(_PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "krea_data.krablet.embedded.keeper", str(folder.root), str(shards)]
    with folder.log.open("wb") as log:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    if done.returncode:
        raise ServerError(_last_line(folder.log) or f"the keeper of {folder.root} ended with {done.returncode}")


def _dsns(folder: Folder, shards: int) -> tuple[str, ...]:
    sockets = folder.sockets.read_text("utf-8").strip()
    return tuple(
        make_conninfo(host=sockets, port=FIRST_PORT + number, user="postgres", dbname="postgres")
        for number in range(shards)
    )


def _wait_for_answers(folder: Folder, dsns: tuple[str, ...], timeout_s: float) -> None:
    """Connecting is the only proof: a process may be there and its number right while nobody answers."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.02
    for dsn in dsns:
        while (refused := refusal(dsn)) is not None:
            with folder.gate():
                kept = folder.kept() and folder.count() >= len(dsns)
            if not kept:
                said = folder.error if folder.error.exists() else folder.log
                raise ServerError(_last_line(said) or _guess(folder.root))
            if time.monotonic() > deadline:
                why = _last_line(folder.error) or refused
                raise ServerError(f"the server in {folder.root} did not answer within {timeout_s:g} s: {why}")
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, 0.5)


def _wait_for_the_end(folder: Folder) -> None:
    """Wait for the keeper to stop the servers, unless there are other users; if it was killed, start another."""
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline and folder.root.exists():
        with explained(folder.root), folder.gate():
            last = folder.last()
            if last is None:
                return
            last.release()
            if not folder.kept():
                shards = folder.count()
                if not any((folder.shard(number) / "postmaster.pid").exists() for number in range(shards)):
                    return
                _start_keeper(folder, shards)
        time.sleep(0.02)
    if folder.root.exists():
        logging.getLogger(__name__).warning("the servers in %s did not stop within %d s", folder.root, _STOP_S)


def _guess(root: Path) -> str:
    """Why a keeper may have ended without a word."""
    free = shutil.disk_usage(root).free
    if free < _ROOM_BYTES:
        return f"the disk of {root} is full ({free >> 20} MiB are free); make room there"
    return f"the keeper of {root} was stopped by somebody; start again"


def _last_line(path: Path) -> str:
    lines = path.read_text("utf-8", errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else ""
