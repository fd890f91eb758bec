"""What runs in the child of a worker: load the function, then answer batches until the pipe is closed."""

import ctypes
import json
import os
import pickle
import resource
import signal
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from krea_data.krablet.pluck.calls import QUICK_S, Call, Said, Trouble, built, said, told
from krea_data.krablet.pluck.keys import KEY_FILE
from krea_data.krablet.pluck.orders import DSNS
from krea_data.krablet.pluck.question import Limits
from krea_data.krablet.pluck.rows import Cells, parsed

__all__ = ["LENGTH", "serve"]

LENGTH = struct.Struct(">Q")
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def serve(parent: int, given: int, told_to: int, blob: bytes, into: str, limits: Limits) -> NoReturn:
    """Never returns: whatever happens, this process must not go on as the worker that it is a copy of."""
    try:
        _settle(parent, (given, told_to), limits.memory_mb)
        _serve(given, told_to, blob, into, limits.batch)
    except BaseException:  # noqa: BLE001 - the worker sees the end of the process
        os._exit(70)
    os._exit(0)


def _settle(parent: int, keep: tuple[int, int], memory_mb: int | None) -> None:
    """Become a process of its own: no connections of the worker, its signals, its secrets or its standard input."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    low, high = sorted(keep)
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536))
    for name in (DSNS, KEY_FILE, "PGPASSWORD"):
        os.environ.pop(name, None)
    if memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def _serve(given: int, told_to: int, blob: bytes, into: str, batch: int) -> None:
    mine = os.getpid()
    try:
        fn = built(pickle.loads(blob))
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises is told
        _tell(told_to, mine, {"broken": _unloadable(error)})
        return
    _tell(told_to, mine, {"ready": True})
    with open(given, "rb") as batches:
        while head := batches.read(LENGTH.size):
            columns = pickle.loads(batches.read(LENGTH.unpack(head)[0]))
            _tell(told_to, mine, _answer(fn, [*zip(*columns, strict=True)], into, batch))


def _answer(fn: Call, rows: Sequence[Cells], into: str, batch: int) -> dict[str, Any]:
    """What is said of the first batch, and of those behind it that are answered within the first milliseconds."""
    found: list[Said] = []
    until = time.monotonic() + QUICK_S
    try:
        while not found or (len(found) < len(rows) and time.monotonic() < until):
            found += said(fn, parsed(rows[len(found) : len(found) + batch]), into)
    except ModuleNotFoundError as error:
        return {"broken": _lacking(error)}
    except BaseException as error:  # noqa: BLE001 - exit and interrupts too: they are about the rows
        if not found:  # else the batch comes again, as the first
            return {"failed": told(error)}
    return {"said": [one.error if isinstance(one, Trouble) else one for one in found]}


def _tell(to: int, mine: int, message: dict[str, Any]) -> None:
    """Send a message, unless this is a fork that the function left behind."""
    if os.getpid() != mine:
        os._exit(0)
    sys.stdout.flush()
    sys.stderr.flush()
    body = json.dumps(message).encode()
    view = memoryview(LENGTH.pack(len(body)) + body)
    while view:
        view = view[os.write(to, view) :]


def _lacking(error: ModuleNotFoundError) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"the function needs the module {error.name!r}, which this worker (Python {version}, {sys.executable}) cannot"
        " import; install it there, or send its code along with by_value=[module]"
    )


def _unloadable(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return _lacking(error)
    return f"the function cannot be loaded in the worker: {told(error)}"
