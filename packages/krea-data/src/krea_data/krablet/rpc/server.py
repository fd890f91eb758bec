"""Serve verbs over sockets: `await serve(service, address, tokens=...)`.

A connection says HELLO with its token first. Its calls run side by side, at most `calls_per_connection` of them and
`calls` over all; above that nothing more is read from it, so a client that hurries waits in its own buffers. Answers
to a client that does not read are waited for, and after `stall_s` the client is cut off.
"""

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from krea_data.krablet.rpc.errors import Busy, Refused, described
from krea_data.krablet.rpc.tokens import SCOPES, Caller, Tokens
from krea_data.krablet.rpc.wire import BODY_BYTES, PROTOCOL, WINDOW, Kind, Link, pack, parse_address

__all__ = ["Server", "Service", "serve"]

_LOG = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_EVERYBODY = Caller("local", SCOPES)


class Service(Protocol):
    """What a server serves. `call` may return an async iterator: its values are streamed."""

    @property
    def scopes(self) -> Mapping[str, str]:
        """The verbs, and the scope that each needs."""
        ...

    async def call(self, verb: str, args: dict[str, Any], caller: Caller) -> Any:
        """Do it. ValueError, LookupError and the krablet's errors reach the caller as they are."""
        ...


async def serve(
    service: Service,
    address: str,
    *,
    tokens: Tokens | None,
    tls: ssl.SSLContext | None = None,
    name: str = "krablet",
    body_bytes: int = BODY_BYTES,
    connections: int = 4096,
    calls: int = 1024,
    calls_per_connection: int = 64,
    hello_s: float = 10.0,
    stall_s: float = 60.0,
) -> "Server":
    """Listen at "host:port" (port 0 takes any) or "unix:/path"; ValueError if this may not be or is taken.

    Without tokens everybody who gets to the address may do everything, so only a socket or a loopback address will do.
    """
    host, port = parse_address(address)
    if tokens is None and port >= 0 and host not in _LOOPBACK:
        raise ValueError(f"{address} can be reached from elsewhere; give tokens, or use 127.0.0.1 or unix:/path")
    if tls is not None and port < 0:
        raise ValueError("a socket in the file system needs no TLS; leave it out")
    server = Server(service, tokens, name, body_bytes, connections, calls, calls_per_connection, hello_s, stall_s)
    await server.listen(host, port, tls)
    return server


class Server:
    """A running server; made by `serve`."""

    def __init__(
        self,
        service: Service,
        tokens: Tokens | None,
        name: str,
        body_bytes: int,
        connections: int,
        calls: int,
        calls_per_connection: int,
        hello_s: float,
        stall_s: float,
    ) -> None:
        self.service, self.tokens, self.name = service, tokens, name
        self.body_bytes, self.connections, self.calls_per_connection = body_bytes, connections, calls_per_connection
        self.hello_s, self.stall_s = hello_s, stall_s
        self.turn = asyncio.Semaphore(calls)
        self.open: set[_Connection] = set()
        self.draining = False
        self.address = ""
        self._listener: asyncio.Server | None = None

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Begin to accept connections."""
        loop = asyncio.get_running_loop()

        def made() -> Link:
            connection = _Connection(self)
            return Link(connection.frame, connection.lost, self.body_bytes, connection.made)

        if port < 0:
            await _make_room(host)
            mask = os.umask(0o177)  # nobody else may connect, not even for a moment
            try:
                self._listener = await loop.create_unix_server(made, host)
            except OSError as error:
                raise ValueError(f"cannot listen at unix:{host}: {error.strerror or error}") from error
            finally:
                os.umask(mask)
            self.address = f"unix:{host}"
            return
        try:
            self._listener = await loop.create_server(made, host, port, ssl=tls)
        except OSError as error:
            raise ValueError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
        port = self._listener.sockets[0].getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def drain(self, timeout_s: float = 30.0) -> bool:
        """Accept nothing more, finish the calls in flight, close; False if some had to be cut off."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        tasks = {task for connection in self.open for task in connection.calls.values()}
        unfinished = (await asyncio.wait(tasks, timeout=timeout_s))[1] if tasks else set[asyncio.Task[None]]()
        for task in unfinished:
            task.cancel()
        for connection in list(self.open):
            connection.link.close()
        for connection in list(self.open):  # what was answered should leave before the loop ends
            await connection.link.gone(1.0)
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)
        return not unfinished


class _Connection:
    """One client: its token, and its calls."""

    link: Link

    def __init__(self, server: Server) -> None:
        self._server = server
        self._caller: Caller | None = None
        self.calls: dict[int, asyncio.Task[None]] = {}
        self._windows: dict[int, asyncio.Semaphore] = {}
        self._late: asyncio.TimerHandle | None = None

    def made(self, link: Link) -> None:
        self.link = link
        if len(self._server.open) >= self._server.connections:
            link.refuse("Busy", f"{self._server.name} has its {self._server.connections} connections")
            return
        self._server.open.add(self)
        loop = asyncio.get_running_loop()
        self._late = loop.call_later(self._server.hello_s, link.abort, "no HELLO came")

    def lost(self, _: Link) -> None:
        self._server.open.discard(self)
        if self._late is not None:
            self._late.cancel()
        for task in self.calls.values():
            task.cancel()

    def frame(self, _: Link, kind: Kind, body: Any) -> None:
        if self._caller is None:
            self._hello(kind, body)
        elif kind is Kind.CALL:
            call, verb, args = body
            self._begin(int(call), str(verb), dict(args))
        elif kind is Kind.CANCEL:
            if body[0] in self.calls:
                self.calls[body[0]].cancel()
        elif kind is Kind.MORE:
            if body[0] in self._windows:
                _grant(self._windows[body[0]], int(body[1]))
        else:
            raise ValueError(kind)

    def _hello(self, kind: Kind, body: Any) -> None:
        if kind is not Kind.HELLO or body["protocol"] != PROTOCOL:
            raise ValueError(kind)
        tokens = self._server.tokens
        self._caller = _EVERYBODY if tokens is None else tokens.check(str(body.get("token") or ""))
        if self._caller is None:
            self.link.refuse("Refused", f"{self._server.name} does not know this token; ask for one")
            return
        if self._late is not None:
            self._late.cancel()
        self.link.send(pack(Kind.WELCOME, {"protocol": PROTOCOL, "server": self._server.name}))

    def _begin(self, call: int, verb: str, args: dict[str, Any]) -> None:
        if call in self.calls:
            raise ValueError(call)
        self.calls[call] = asyncio.get_running_loop().create_task(self._answer(call, verb, args))
        if len(self.calls) >= self._server.calls_per_connection:
            self.link.hold()

    async def _answer(self, call: int, verb: str, args: dict[str, Any]) -> None:
        try:
            if self._server.draining:
                raise Busy(f"{self._server.name} is shutting down; connect again", 0.2)
            self._allow(verb)
            async with self._server.turn:
                assert self._caller is not None
                value = await self._server.service.call(verb, args, self._caller)
            if isinstance(value, AsyncIterator):
                await self._stream(call, value)
            else:
                self.link.send(pack(Kind.REPLY, [call, value], self._server.body_bytes))
        except Exception as error:  # noqa: BLE001 - the caller is told, the server goes on
            kind, message, extra = described(error)
            if not message:
                _LOG.exception("%s failed", verb)
            self.link.send(pack(Kind.FAIL, [call, kind, message, extra]))
        finally:
            if self.link.alive:
                await self.link.drained(self._server.stall_s)
            del self.calls[call]
            self._windows.pop(call, None)
            if len(self.calls) < self._server.calls_per_connection:
                self.link.release()

    async def _stream(self, call: int, values: AsyncIterator[Any]) -> None:
        """Send the values, `WINDOW` ahead of what the client has used."""
        window = self._windows[call] = asyncio.Semaphore(WINDOW)
        try:
            async for value in values:
                async with asyncio.timeout(self._server.stall_s):
                    await window.acquire()
                self.link.send(pack(Kind.PART, [call, value], self._server.body_bytes))
                await self.link.drained(self._server.stall_s)
            self.link.send(pack(Kind.END, [call]))
        except TimeoutError as error:
            raise Busy(f"the client used no part of the stream for {self._server.stall_s} s", 0.0) from error
        finally:
            if isinstance(values, _Closing):
                await values.aclose()

    def _allow(self, verb: str) -> None:
        scope = self._server.service.scopes.get(verb)
        if scope is None:
            raise LookupError(f"{self._server.name} has no verb {verb!r}; it has {sorted(self._server.service.scopes)}")
        if self._caller is None or not self._caller.may(scope):
            raise Refused(f"{verb} needs the scope {scope!r}, which this token lacks")


def _grant(window: asyncio.Semaphore, parts: int) -> None:
    for _ in range(min(parts, WINDOW)):
        window.release()


@runtime_checkable
class _Closing(Protocol):
    async def aclose(self) -> None: ...


async def _make_room(path: str) -> None:
    """Remove the socket of a server that died, or ValueError if one listens."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        if Path(path).is_socket():
            Path(path).unlink()
        elif Path(path).exists():
            raise ValueError(f"{path} is there and no socket; choose another path") from None
        return
    writer.close()
    await writer.wait_closed()
    raise ValueError(f"another server listens at unix:{path}; stop it or choose another path")
