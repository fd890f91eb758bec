"""Tasks that misbehave for real. A module of its own, so that their processes can import it."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from krea_data.rows import Result, Row

_MIB = 1 << 20


def segfault() -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def leave() -> None:
    """End without a word."""
    os._exit(3)


def leave_politely() -> None:
    """End as a script does, which is an exception like others."""
    sys.exit("enough")


def hang() -> None:
    """Never come back."""
    while True:
        time.sleep(1)


def spin() -> None:
    """Never come back, in C and with the lock of the interpreter."""
    sum(range(10**15))


def swell() -> None:
    """Take memory without end."""
    held = []
    while True:
        held.append(bytearray(8 * _MIB))


def fork() -> None:
    """Go on twice, and leave a third one that never ends."""
    if os.fork() == 0 and os.fork() == 0:
        hang()


def kill() -> None:
    """What the kernel does to the largest process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def babble() -> None:
    """Write what is no answer where answers go."""
    for number in range(3, 40):
        try:
            os.write(number, b"\x00\x00\x00\x00\x00\x00\x00\x04null")
        except OSError:
            continue


def close() -> None:
    """Close everything."""
    os.closerange(3, 100)


DEEDS = {one.__name__: one for one in (segfault, leave, leave_politely, hang, spin, swell, fork, kill, babble, close)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadly:
    """Does its deed at every row of `poison`, and says which process answered the others."""

    deed: str
    poison: frozenset[str]
    name: str = "fake"
    after: tuple[str, ...] = ()
    isolated: bool = True
    timeout_s: float = 20.0
    memory_bytes: int | None = None
    batch: int = 64

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        for row in rows:
            if row.id in self.poison:
                DEEDS[self.deed]()
        return [Result(value={"pid": os.getpid()}) for _ in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadlyPicture:
    """Meets its poison in the bytes of a blob. Notes its calls in the file `calls`."""

    blobs: Any
    deed: str
    poison: bytes
    calls: str
    name: str = "fake"
    after: tuple[str, ...] = ()
    isolated: bool = True
    timeout_s: float = 20.0
    at_once: bool = False  # reads all before it looks at any

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        with open(self.calls, "a") as file:
            file.write(f"{len(rows)}\n")
        data = [self.blobs.get(row.blob) for row in rows] if self.at_once else []
        sizes = []
        for number, row in enumerate(rows):
            one = data[number] if self.at_once else self.blobs.get(row.blob)
            if one == self.poison:
                DEEDS[self.deed]()
            sizes.append(len(one))
        return [Result(value={"bytes": size}) for size in sizes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slow:
    """Takes `seconds` for a batch, wherever it runs; signs with a mark."""

    seconds: float
    mark: str = ""
    name: str = "fake"
    after: tuple[str, ...] = ()
    batch: int = 10

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        time.sleep(self.seconds)
        return [Result(value={"by": self.mark}) for _ in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpicklable:
    """Holds what cannot be sent to another process."""

    name: str = "fake"
    after: tuple[str, ...] = ()
    isolated: bool = True
    hook: Any = field(default_factory=lambda: lambda: None)

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        return [Result() for _ in rows]


class Unloadable:
    """Can be sent and not be made again."""

    name, after, isolated = "fake", (), True

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return int, ("no number",)

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        return [Result() for _ in rows]


class SlowPictures:
    """Takes 0.2 s for each blob."""

    name, after = "fake", ()

    def __init__(self) -> None:
        self.blobs: Any = None

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        for row in rows:
            self.blobs.get(row.blob)
            time.sleep(0.2)
        return [Result() for _ in rows]


class Environment:
    """Says what it finds in its environment."""

    name, after = "fake", ()

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        return [Result(value={"names": list(os.environ)}) for _ in rows]
