"""The folder of an embedded cluster: what lies in it, and the locks by which its users and its keeper meet.

cluster.json      how many shards
shard-00/ ...     the data of one PostgreSQL each; shard-00.log what it said
gate.lock         held for a moment by whoever comes or goes
users.lock        shared by everybody who uses the servers; the kernel gives it back when a process is killed
keeper.lock       held by the one process that starts and stops the servers
sockets           where the servers listen; keeper.log, error: what went wrong
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from krea_data.krablet.errors import ServerError

__all__ = ["FIRST_PORT", "Folder", "Hold", "explained"]

FIRST_PORT = 5432  # only a part of the sockets' names
_MOST_SHARDS = 64


class Hold:
    """A held file lock; the processes that inherit it by fork hold it too."""

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = True) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(self._file)
            raise

    def release(self) -> None:
        """Let go."""
        os.close(self._file)

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class Folder:
    """The paths of a cluster under `root`."""

    root: Path

    @property
    def log(self) -> Path:
        """What the keeper says."""
        return self.root / "keeper.log"

    @property
    def error(self) -> Path:
        """Why the keeper gave up, or why a server is down for longer, in one sentence."""
        return self.root / "error"

    @property
    def sockets(self) -> Path:
        """The file that names the folder where the servers listen."""
        return self.root / "sockets"

    def shard(self, number: int) -> Path:
        """The data of one shard."""
        return self.root / f"shard-{number:02d}"

    def gate(self) -> Hold:
        """Wait for the right to come or go."""
        return Hold(self.root / "gate.lock")

    def use(self) -> Hold:
        """Count as a user."""
        return Hold(self.root / "users.lock", shared=True)

    def last(self) -> Hold | None:
        """The lock that nobody gets while there is a user, or None if there is one; only to be asked in the gate."""
        return _try(self.root / "users.lock")

    def keep(self) -> Hold | None:
        """Become the keeper, or None if there is one."""
        return _try(self.root / "keeper.lock")

    def kept(self) -> bool:
        """Whether there is a keeper; only to be asked in the gate, where no other keeper starts."""
        mine = self.keep()
        if mine is not None:
            mine.release()
        return mine is None

    def count(self) -> int:
        """How many shards there are, or will be once the keeper has seen it; 0 before the first use."""
        path = self.root / "cluster.json"
        return int(json.loads(path.read_text("utf-8"))["shards"]) if path.exists() else 0

    def settle(self, shards: int | None) -> int:
        """The number of shards of this cluster, kept from its first use on; ValueError for another one."""
        found = self.count()
        if found:
            if shards not in (None, found):
                raise ValueError(
                    f"{self.root} holds {found} shards, not {shards}; use {found}, another folder,"
                    " or Cluster.grow for more"
                )
            return found
        self.write_count(_checked(1 if shards is None else shards))
        return self.count()

    def grow(self, shards: int) -> None:
        """Have more shards from now on; the keeper sees it and starts them. Only to be called in the gate."""
        found = self.count()
        if _checked(shards) < found:
            raise ValueError(f"{self.root} holds {found} shards and cannot go back to {shards}; move their slots away")
        self.write_count(shards)

    def write_count(self, shards: int) -> None:
        """Write down how many shards there are."""
        path = self.root / "cluster.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({"shards": shards}) + "\n", "utf-8")
        temporary.replace(path)


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into a sentence with a way out."""
    try:
        yield
    except OSError as error:
        raise ServerError(
            f"cannot keep a database in {root}: {error.strerror} ({error.filename or root});"
            " make room there, or name a folder that this user may write to"
        ) from error


def _checked(shards: int) -> int:
    if not 0 < shards <= _MOST_SHARDS:
        raise ValueError(f"{shards} shards are not between 1 and {_MOST_SHARDS}; use 1 or 2 on one machine")
    return shards


def _try(path: Path) -> Hold | None:
    try:
        return Hold(path, wait=False)
    except BlockingIOError:
        return None
