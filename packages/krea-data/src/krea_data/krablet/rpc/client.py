"""Call a server: `Client` from a coroutine, `Remote` from anywhere else.

`call` does a thing at most once: if the connection breaks after it was sent, `Broken` says that nobody knows. `repeat`
is for what may be done twice: it connects and asks again until the client's patience ends.
"""

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

from krea_data.krablet.rpc.errors import Broken, Busy, RpcError, restored
from krea_data.krablet.rpc.loop import LoopThread
from krea_data.krablet.rpc.wire import BODY_BYTES, PROTOCOL, Kind, Link, pack, parse_address

__all__ = ["Client", "Remote"]

_PAUSE_S = 0.02, 1.0  # between two tries to connect, first and longest
_Parts: TypeAlias = "asyncio.Queue[tuple[Any, Exception | None] | None]"


class Client:
    """A connection to a server that comes back by itself. Belongs to one event loop; made by `connect`."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        name: str = "",
        patience_s: float = 10.0,
        timeout_s: float | None = None,
        body_bytes: int = BODY_BYTES,
    ) -> None:
        self.address = address
        self.patience_s = patience_s
        self.timeout_s = timeout_s
        self._host, self._port = parse_address(address)
        self._hello = pack(Kind.HELLO, {"protocol": PROTOCOL, "token": token, "client": name})
        self._tls, self._body_bytes = tls, body_bytes
        self._link: Link | None = None
        self._waiting: dict[int, tuple[Link, asyncio.Future[Any] | _Parts]] = {}
        self._last = 0
        self._connecting = asyncio.Lock()
        self._closed = False

    @classmethod
    async def connect(cls, address: str, **options: Any) -> "Client":
        """A connected client; takes what the class takes. `Refused` for a wrong token, `Broken` if nobody is there."""
        client = cls(address, **options)
        await client.reach()
        return client

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; open calls get `Broken`."""
        self._closed = True
        if self._link is not None:
            self._link.close()
            self._break(self._link, "the client was closed")
            await self._link.gone(1.0)

    async def call(self, verb: str, /, **args: Any) -> Any:
        """The verb's answer, or its error. Sent once: `Broken` leaves open whether it was done."""
        link = await self.reach()
        call, future, began = self._next(), asyncio.get_running_loop().create_future(), time.monotonic()
        frame = pack(Kind.CALL, [call, verb, args], self._body_bytes)
        self._waiting[call] = link, future
        try:
            link.send(frame)
            async with asyncio.timeout(self.timeout_s):
                await link.drained()
                return await future
        except TimeoutError as error:
            if link.heard < began:  # maybe nothing passes this line any more, although nobody has closed it
                link.abort(f"nothing came for {self.timeout_s} s")
            raise Broken(f"{self.address} did not answer {verb} within {self.timeout_s} s") from error
        finally:
            del self._waiting[call]
            if not future.done() or future.cancelled():
                link.send(pack(Kind.CANCEL, [call]))

    async def repeat(self, verb: str, /, **args: Any) -> Any:
        """`call`, again after a broken connection or `Busy` until patience ends: for what may be done twice."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return await self.call(verb, **args)
            except (Broken, Busy) as error:
                pause_s = error.retry_after_s if isinstance(error, Busy) else _PAUSE_S[0]
                if self._closed or time.monotonic() + pause_s > deadline:
                    raise
                await asyncio.sleep(pause_s)

    async def stream(self, verb: str, /, **args: Any) -> AsyncGenerator[Any, None]:
        """The values of a streamed answer, read as they are used."""
        link = await self.reach()
        call = self._next()
        parts: _Parts = asyncio.Queue()
        self._waiting[call] = link, parts
        done = False
        try:
            link.send(pack(Kind.CALL, [call, verb, args], self._body_bytes))
            while (part := await parts.get()) is not None:
                value, error = part
                if error is not None:
                    done = True
                    raise error
                link.send(pack(Kind.MORE, [call, 1]))
                yield value
            done = True
        finally:
            del self._waiting[call]
            if not done:
                link.send(pack(Kind.CANCEL, [call]))

    async def reach(self) -> Link:
        """The live connection, made if need be; who waits for the try of another spends patience on that."""
        deadline = time.monotonic() + self.patience_s
        async with self._connecting:
            if self._closed:
                raise Broken("this client is closed; make another one")
            if self._link is not None and self._link.alive:
                return self._link
            self._link = await self._patiently(deadline)
            return self._link

    async def _patiently(self, deadline: float) -> Link:
        pause_s = _PAUSE_S[0]
        while True:
            try:
                return await self._dial(max(1.0, deadline - time.monotonic()))
            except (OSError, Broken, Busy) as error:
                if isinstance(error, ssl.SSLError):
                    raise Broken(f"no secure connection to {self.address}: {error}") from error
                if self._closed or time.monotonic() + pause_s > deadline:
                    raise Broken(f"{self.address} does not answer: {error}") from error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S[1])

    async def _dial(self, timeout_s: float) -> Link:
        loop = asyncio.get_running_loop()
        link = Link(self._frame, self._lost, self._body_bytes)
        link.welcome = loop.create_future()
        async with asyncio.timeout(timeout_s):
            if self._port < 0:
                await loop.create_unix_connection(lambda: link, self._host)
            else:
                await loop.create_connection(lambda: link, self._host, self._port, ssl=self._tls)
            link.send(self._hello)
            try:
                await link.welcome
            except BaseException:
                link.close()
                raise
        return link

    def _frame(self, link: Link, kind: Kind, body: Any) -> None:
        if kind is Kind.WELCOME:
            if link.welcome is not None and not link.welcome.done():
                link.welcome.set_result(None)
            return
        call = body[0]
        if kind is Kind.FAIL and call == 0:
            self._goodbye(link, restored(*body[1:]))
            return
        _, waiting = self._waiting.get(call, (link, None))
        if isinstance(waiting, asyncio.Queue):
            if kind is Kind.PART:
                waiting.put_nowait((body[1], None))
            elif kind is Kind.FAIL:
                waiting.put_nowait((None, restored(*body[1:])))
            elif kind is Kind.END:
                waiting.put_nowait(None)
            else:
                waiting.put_nowait((None, RpcError("this verb answers once; use call")))
        elif waiting is not None and not waiting.done():
            if kind is Kind.REPLY:
                waiting.set_result(body[1])
            elif kind is Kind.FAIL:
                _failed(waiting, restored(*body[1:]))
            else:
                _failed(waiting, RpcError("this verb streams its answer; use stream"))
                link.send(pack(Kind.CANCEL, [call]))

    def _goodbye(self, link: Link, error: Exception) -> None:
        """The server ends the connection and says why."""
        if not _failed(link.welcome, error):
            link.reason = str(error)
        link.close()

    def _lost(self, link: Link) -> None:
        why = f"the connection to {self.address} was lost" + (f": {link.reason}" if link.reason else "")
        _failed(link.welcome, Broken(why))
        self._break(link, why)

    def _break(self, link: Link, why: str) -> None:
        for waiting in [waiting for on, waiting in self._waiting.values() if on is link]:
            if isinstance(waiting, asyncio.Queue):
                waiting.put_nowait((None, Broken(why)))
            else:
                _failed(waiting, Broken(why))

    def _next(self) -> int:
        self._last += 1
        return self._last


class Remote:
    """`Client` for threads without an event loop. Safe among threads; a forked child connects anew."""

    def __init__(self, address: str, **options: Any) -> None:
        """Connect; takes what `Client` takes, and raises what `Client.connect` raises."""
        self.address = address
        self._options = options
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._client: Client | None = None
        self._closed = False
        self._ready()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, verb: str, /, **args: Any) -> Any:
        """As `Client.call`."""
        thread, client = self._ready()
        return thread.run(client.call(verb, **args))

    def repeat(self, verb: str, /, **args: Any) -> Any:
        """As `Client.repeat`."""
        thread, client = self._ready()
        return thread.run(client.repeat(verb, **args))

    def stream(self, verb: str, /, **args: Any) -> Iterator[Any]:
        """As `Client.stream`."""
        thread, client = self._ready()
        values = client.stream(verb, **args)
        try:
            while True:
                try:
                    yield thread.run(_next(values))
                except StopAsyncIteration:
                    return
        finally:  # without a wait: the collector may end this generator on any thread, the loop's own among them
            with suppress(RuntimeError):  # the loop has ended, and closed it
                thread.post(lambda: thread.loop.create_task(_end(values)))

    def close(self) -> None:
        """End the connection and its thread."""
        self._closed = True
        with self._lock:
            if self._thread is not None and self._client is not None and self._thread.mine:
                self._thread.run(self._client.close())
                self._thread.stop()
            self._thread = self._client = None

    def _ready(self) -> tuple[LoopThread, Client]:
        if self._closed:
            raise Broken("this client is closed; make another one")
        with self._lock:
            if self._thread is None or self._client is None or not self._thread.mine:
                thread = LoopThread("rpc")
                try:
                    client = thread.run(Client.connect(self.address, **self._options))
                except BaseException:
                    thread.stop()
                    raise
                self._thread, self._client = thread, client
            return self._thread, self._client


def _failed(future: "asyncio.Future[Any] | None", error: Exception) -> bool:
    """End a future for which maybe nobody waits any more; False where it has ended."""
    if future is None or future.done():
        return False
    future.set_exception(error)
    future.exception()
    return True


async def _next(values: AsyncGenerator[Any, None]) -> Any:
    return await anext(values)


async def _end(values: AsyncGenerator[Any, None]) -> None:
    await values.aclose()
