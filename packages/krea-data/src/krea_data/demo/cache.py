"""Where downloads lie, and a lock so that two processes do not fetch or draw the same thing at once."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from krea_data.demo.errors import explain

__all__ = ["default_cache", "locked", "staged", "sweep"]


def default_cache() -> Path:
    """KREA_CACHE, or the folder that the platform has for caches."""
    if chosen := os.environ.get("KREA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "krea" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "krea"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "krea"


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def locked(folder: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the folder's lock file; waits for another process, and the system frees it if that process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise explain(error, f"opening the cache {folder}") from error
    try:
        if not _try_lock(handle):
            on_wait()
            while not _try_lock(handle):
                time.sleep(0.2)
        yield
    finally:
        os.close(handle)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well and vanishes otherwise."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    except OSError as error:
        raise explain(error, f"making a folder in {target.parent}") from error
    try:
        yield temporary
        shutil.rmtree(target, ignore_errors=True)
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    except OSError as error:
        raise explain(error, f"writing {target}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written; only for the holder of the lock."""
    for stray in folder.glob(".new-*"):
        shutil.rmtree(stray, ignore_errors=True)
