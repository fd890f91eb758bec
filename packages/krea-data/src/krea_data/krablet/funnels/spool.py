"""A write-ahead spool: requests on disk before they are in the database, for callers that must not wait for it.

Files `<number>.seg` hold records: length and CRC-32 of the body (4 bytes each, big-endian), then the body. What was
appended together is synced together. A file is deleted when everything in it is stored. A process that is killed in the
middle of a record leaves a torn tail, which was never acknowledged and is cut off at the next start; anything else that
cannot be read is damage, and said so.
"""

import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from krea_data.krablet.errors import ServerError
from krea_data.krablet.rpc.errors import Busy

__all__ = ["Spool"]

_HEAD = struct.Struct(">II")


class Spool:
    """The spool in a folder, which belongs to one process at a time. Safe among threads.

    Read `replay` to its end before the first `append`. Both give the number of the file that holds a body; call
    `stored` with it once for every body.
    """

    def __init__(self, folder: Path | str, *, segment_bytes: int = 16 << 20, most_bytes: int = 1 << 30) -> None:
        self.folder = Path(folder)
        self._segment_bytes, self._most_bytes = segment_bytes, most_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._own = _owned(self.folder)
        self._lock = threading.Condition()
        self._open: dict[int, int] = {}  # bodies that are not stored yet, by segment
        self._sizes = {int(file.stem): file.stat().st_size for file in self.folder.glob("*.seg")}
        self._number = max(self._sizes, default=0) + 1
        self._file = -1
        self._queue: list[tuple[bytes, Future[int]]] = []
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def size(self) -> int:
        """Bytes in the files."""
        return sum(self._sizes.values())

    def replay(self) -> Iterator[tuple[int, bytes]]:
        """What earlier processes left, in its order; `ServerError` for damage other than a torn tail."""
        numbers = sorted(self._sizes)
        for number in numbers:
            path = self._path(number)
            raw = path.read_bytes()
            bodies, end = _parsed(raw)
            if end < len(raw):
                if number != numbers[-1] and not _is_torn(raw, end):
                    raise ServerError(f"{path} is damaged at byte {end}; move it away to start without what follows")
                os.truncate(path, end)
                self._sizes[number] = end
            self._open[number] = len(bodies)
            for body in bodies:
                yield number, body
            if not bodies:
                self._drop(number)

    def append(self, body: bytes) -> "Future[int]":
        """Write a body; the future gives its segment once it is on disk. `Busy` if the spool is full."""
        with self._lock:
            if self._closed:
                raise Busy("the spool is closed", 0.2)
            waiting = sum(len(queued) for queued, _ in self._queue)
            if self.size + waiting + len(body) > self._most_bytes:
                raise Busy(f"the spool in {self.folder} holds its {self._most_bytes} bytes; is a shard down?", 1.0)
            future: Future[int] = Future()
            self._queue.append((_HEAD.pack(len(body), zlib.crc32(body)) + body, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
                self._thread.start()
            self._lock.notify()
        return future

    def stored(self, segment: int) -> None:
        """One body of the segment is in the database."""
        with self._lock:
            self._open[segment] -= 1
            if not self._open[segment] and (segment != self._number or self._file < 0):
                self._drop(segment)

    def close(self) -> None:
        """Write what was appended, then end; what is not stored stays for the next process."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._seal()
        os.close(self._own)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._queue or self._closed)
                batch, self._queue = self._queue, []
            if not batch:
                return
            try:
                segment = self._write(batch)
            except OSError as error:
                failed = ServerError(f"the spool in {self.folder} cannot be written: {error.strerror or error}")
                for _, future in batch:
                    future.set_exception(failed)
                continue
            for _, future in batch:
                future.set_result(segment)

    def _write(self, batch: list[tuple[bytes, "Future[int]"]]) -> int:
        """Append a batch and sync it; after a failure the file is sealed at what was whole."""
        with self._lock:
            if self._file >= 0 and self._sizes[self._number] > self._segment_bytes:
                self._seal()
            if self._file < 0:
                self._start()
            number, file = self._number, self._file
            self._open[number] += len(batch)
        raw = b"".join(record for record, _ in batch)
        try:
            _write_all(file, raw)
            os.fdatasync(file)
        except OSError:
            with self._lock, suppress(OSError):
                self._open[number] -= len(batch)
                os.ftruncate(file, self._sizes[number])
                self._seal()
            raise
        with self._lock:
            self._sizes[number] += len(raw)
        return number

    def _start(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._file = os.open(self._path(self._number), flags, 0o600)
        self._sizes[self._number] = 0
        self._open[self._number] = 0
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the file's name must be as durable as what is in it
        finally:
            os.close(folder)

    def _seal(self) -> None:
        """Write no more to the file, and delete it if all of it is stored."""
        if self._file < 0:
            return
        os.close(self._file)
        number, self._file = self._number, -1
        self._number += 1
        if not self._open[number]:
            self._drop(number)

    def _drop(self, segment: int) -> None:
        self._path(segment).unlink(missing_ok=True)
        self._sizes.pop(segment, None)
        self._open.pop(segment, None)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:012d}.seg"


def _owned(folder: Path) -> int:
    """A lock on the folder that ends with the process, or ValueError."""
    own = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(own)
        raise ValueError(f"another process uses the spool in {folder}; give each one its own") from None
    return own


def _parsed(raw: bytes) -> tuple[list[bytes], int]:
    """The whole records at the start, and where they end."""
    bodies: list[bytes] = []
    at = 0
    while at + _HEAD.size <= len(raw):
        size, crc = _HEAD.unpack_from(raw, at)
        body = raw[at + _HEAD.size : at + _HEAD.size + size]
        if len(body) < size or zlib.crc32(body) != crc or not size:
            break
        bodies.append(body)
        at += _HEAD.size + size
    return bodies, at


def _is_torn(raw: bytes, at: int) -> bool:
    """Whether a record was begun here and never ended."""
    if at + _HEAD.size > len(raw):
        return True
    size, _ = _HEAD.unpack_from(raw, at)
    return at + _HEAD.size + size > len(raw)


def _write_all(file: int, raw: bytes) -> None:
    rest = memoryview(raw)
    while rest:
        rest = rest[os.write(file, rest) :]
