"""What runs in the process of an isolated task: load the task, then answer batches until the pipe is closed.

The pictures that such a task looks at are not trusted, so its answers are JSON and never pickles.
"""

import ctypes
import faulthandler
import json
import mmap
import os
import pickle
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from krea_data.interfaces import Task
from krea_data.rows import Row
from krea_data.runtime.answering import answers
from krea_data.runtime.given import Given

__all__ = ["LENGTH", "OUT_OF_MEMORY", "SLATE", "serve"]

LENGTH = struct.Struct(">Q")
SLATE = struct.Struct(">qq")
"""What parent and child see at any time: how many blobs the call asked for, and the row of the last one, or -1."""
OUT_OF_MEMORY = 77
"""The exit code where memory ran out: what is left of this process may be too little for rows that are not at fault."""
_BROKEN = 70
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def serve(parent: int, given: int, told: int, slate: int) -> NoReturn:
    """Answer what comes in at the descriptor `given` through `told`; returns to nobody.

    The first frame is the pickled (task, memory_bytes), those after it are (rows, blobs).
    """
    try:
        _settle(parent)
        _serve(given, told, mmap.mmap(slate, SLATE.size))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BaseException:  # noqa: BLE001 - the parent sees the code, the log says the rest
        traceback.print_exc()
        os._exit(_BROKEN)
    os._exit(0)


def _settle(parent: int) -> None:
    """Be the first to go: with the parent, when memory runs out, and without a core dump."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        try:
            Path("/proc/self/oom_score_adj").write_text("1000")
        except OSError:
            return


def _serve(given: int, told: int, slate: mmap.mmap) -> None:
    mine = os.getpid()
    place: dict[str, int] = {}
    asked = 0

    def note(key: str) -> None:
        nonlocal asked
        asked += 1
        SLATE.pack_into(slate, 0, asked, place.get(key, -1))

    with open(given, "rb") as stream:
        task, memory_bytes = pickle.loads(_read(stream))
        blobs = Given(task.blobs, note) if hasattr(task, "blobs") else None
        if blobs is not None:
            object.__setattr__(task, "blobs", blobs)  # tasks are frozen, and this copy is ours
        if memory_bytes is not None:
            _limit(memory_bytes)
        _tell(told, mine, {"ready": True})
        while frame := _read(stream):
            rows, data = pickle.loads(frame)
            place = {row.blob: number for number, row in enumerate(rows)}
            asked = 0
            if blobs is not None:
                blobs.hold(data)
            _tell(told, mine, _answer(task, rows))


def _answer(task: Task, rows: Sequence[Row]) -> Mapping[str, Any]:
    try:
        return {"said": [[dict(result.value), result.drop] for result in answers(task, rows)]}
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 - exit and interrupt too: whatever a task raises is about its rows
        return {"failed": f"{type(error).__name__}: {error}"}


def _limit(memory_bytes: int) -> None:
    """Let this process have so much more data than it has now; libraries reserve what they like before."""
    used = 0
    status = Path("/proc/self/status")
    if status.exists():
        used = next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmData"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = used + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _read(stream: BinaryIO) -> bytes:
    """The next frame, or nothing at the end."""
    head = stream.read(LENGTH.size)
    return stream.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""


def _tell(told: int, mine: int, message: Mapping[str, Any]) -> None:
    """Send a message, unless this is a fork that the task left behind."""
    if os.getpid() != mine:
        os._exit(0)
    body = json.dumps(message).encode()
    view = memoryview(LENGTH.pack(len(body)) + body)
    while view:
        view = view[os.write(told, view) :]
