"""A relay between two sockets of the file system that delays, cuts and swallows what passes through it."""

import asyncio
import random
import threading
from collections import Counter
from pathlib import Path

FAULTS = ("delay", "cut", "cut answer", "half open")
_CHUNK_BYTES = 1 << 14
_SLOW_PIECES = 10


class Relay:
    """Passes connections to `inside` on to `outside`; `trouble` says whether it does harm.

    After a random number of pieces a connection meets one of the faults: it is slow for a while, it is cut at once
    (maybe in the middle of a message), what was asked gets through and the answer does not, or nothing gets through
    for up to `silence_s` while both ends believe that it is open; then it is cut.
    """

    def __init__(
        self, outside: Path, inside: Path, seed: int, *, pieces: tuple[int, int] = (3, 25), silence_s: float = 1.0
    ) -> None:
        self.outside, self.inside, self.pieces, self.silence_s = outside, inside, pieces, silence_s
        self.trouble = True
        self.met: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self._turns: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._ready, self._stop = threading.Event(), asyncio.Event()

    def __enter__(self) -> "Relay":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_unix_server(self._relay, self.outside)
        self.outside.chmod(0o777)
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its bad end."""
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self.inside)
        except OSError:
            writer.transport.abort()
            return
        line = _Line(self)
        ways = [
            asyncio.ensure_future(line.carry(reader, far_writer, asks=True)),
            asyncio.ensure_future(line.carry(far_reader, writer, asks=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            return  # the relay ends
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            far_writer.transport.abort()

    def choose(self) -> tuple[int, str]:
        """After how many pieces a connection meets which fault."""
        self._turns = self._turns or self._draw.sample(FAULTS, len(FAULTS))
        return self._draw.randint(*self.pieces), self._turns.pop()

    def some(self, most: float) -> float:
        """A random number up to the most."""
        return self._draw.uniform(0.0, most)


class _Line:
    """Both directions of one connection, and the fault that they share."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._left, self._fault = relay.choose()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asks: bool) -> None:
        """Carry pieces in one direction until either end, or the fault, ends it."""
        while piece := await reader.read(_CHUNK_BYTES):
            if self._relay.trouble:
                self._left -= 1
                if self._left <= 0 and not await self._harm(piece, writer, asks):
                    return
            writer.write(piece)
            await writer.drain()

    async def _harm(self, piece: bytes, writer: asyncio.StreamWriter, asks: bool) -> bool:
        """Do what is to be done to this piece; False for the end of the connection."""
        relay, fault = self._relay, self._fault
        if fault == "cut answer" and asks:
            return True
        if self._left == 0 or fault in ("cut", "cut answer"):
            relay.met[fault] += 1
        if fault == "delay":
            await asyncio.sleep(relay.some(0.05))
            if self._left < -_SLOW_PIECES:
                self._left, self._fault = relay.choose()
            return True
        if fault == "cut":
            writer.write(piece[: int(relay.some(len(piece)))])
            await asyncio.sleep(0)
        elif fault == "half open":
            await asyncio.sleep(relay.some(relay.silence_s))
        return False
