"""Frames: 4 bytes of length of the body (big-endian), 1 byte of kind, then the body in msgpack.

HELLO    client   {protocol, token, client}    the first frame of a connection
WELCOME  server   {protocol, server}           the answer to it
CALL     client   [id, verb, args]             ids are the client's choice, unique among its open calls
REPLY    server   [id, value]                  a call's answer
FAIL     server   [id, kind, message, extra]   a call's error; id 0 ends the connection
PART     server   [id, value]                  one value of a stream; `WINDOW` of them go out unasked
END      server   [id]                         the stream is complete
CANCEL   client   [id]                         nobody waits for this call any longer
MORE     client   [id, n]                      n parts were used, so n more may come

Times travel as msgpack timestamps and come out in UTC.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any, cast

try:
    import msgpack
except ImportError as error:
    raise ImportError("calls over a socket need msgpack; install krea-data[serve]") from error

__all__ = ["BODY_BYTES", "PROTOCOL", "WINDOW", "Kind", "Link", "pack", "parse_address"]

PROTOCOL = 1
BODY_BYTES = 64 << 20
WINDOW = 8  # parts of a stream on the way
_HEAD = struct.Struct(">IB")
_SOCKET_PATH_BYTES = 107  # Linux allows no longer one


class Kind(IntEnum):
    """What a frame says."""

    HELLO = 1
    WELCOME = 2
    CALL = 3
    REPLY = 4
    FAIL = 5
    PART = 6
    END = 7
    CANCEL = 8
    MORE = 9


def pack(kind: Kind, body: Any, limit: int = BODY_BYTES) -> bytes:
    """One frame, or ValueError for what msgpack cannot hold or is above `limit` bytes."""
    try:
        raw = bytes(msgpack.packb(body, use_bin_type=True, datetime=True) or b"")
    except (TypeError, OverflowError, ValueError) as error:
        raise ValueError(f"this cannot be sent: {error}; use plain values, lists and dicts of them") from error
    if len(raw) > limit:
        raise ValueError(f"a message of {len(raw)} bytes is above the limit of {limit}; send it in parts")
    return _HEAD.pack(len(raw), kind) + raw


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of "host:port", or (path, -1) of "unix:/path", or ValueError."""
    scheme, _, path = address.partition(":")
    if scheme == "unix":
        if not path or len(path.encode()) > _SOCKET_PATH_BYTES:
            raise ValueError(f"the socket's path {path!r} has not 1 to {_SOCKET_PATH_BYTES} bytes; use a short one")
        return path, -1
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise ValueError(f"the address {address!r} is neither host:port nor unix:/path")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Link(asyncio.Protocol):
    """One end of a connection: hands every frame to `on_frame(link, kind, body)`, and its end to `on_lost(link)`.

    A peer that breaks the protocol or sends a body above `limit` bytes is told so (`FAIL` 0) and cut off.
    """

    def __init__(
        self,
        on_frame: Callable[["Link", Kind, Any], None],
        on_lost: Callable[["Link"], None],
        limit: int = BODY_BYTES,
        on_made: Callable[["Link"], None] | None = None,
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self.reason = ""  # why the link was cut, if this side cut it
        self.welcome: asyncio.Future[None] | None = None  # for which a client waits that has just connected
        self.heard = 0.0  # when something last came, by time.monotonic
        self.held = False  # frames wait in the buffer until `release`
        self._on_frame, self._on_lost, self._on_made = on_frame, on_lost, on_made
        self._limit = limit
        self._buffer = bytearray()
        self._gone = asyncio.Event()
        self._parsing = False
        self._flowing: asyncio.Future[None] | None = None  # set while the peer does not read

    @property
    def alive(self) -> bool:
        """Whether something may still be sent."""
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        _keep_alive(transport.get_extra_info("socket"))
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        self._buffer += data
        self._parse()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reason = self.reason or (str(exc) if exc else "")
        self.resume_writing()
        self._gone.set()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._flowing = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._flowing is not None and not self._flowing.done():
            self._flowing.set_result(None)
        self._flowing = None

    def send(self, frame: bytes) -> None:
        """Queue a frame; what is sent over a dead link is lost."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frame)

    async def drained(self, timeout_s: float | None = None) -> None:
        """Wait until the peer has read enough; one that reads nothing for `timeout_s` is cut off."""
        if self._flowing is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.shield(self._flowing)
            except TimeoutError:
                self.abort(f"nothing was read for {timeout_s} s")

    def hold(self) -> None:
        """Take in no more frames until `release`."""
        if not self.held and self.transport is not None:
            self.held = True
            self.transport.pause_reading()

    def release(self) -> None:
        """Go on after `hold`."""
        if self.held and self.transport is not None:
            self.held = False
            self._parse()
            if not self.held and not self.transport.is_closing():
                self.transport.resume_reading()

    def close(self) -> None:
        """End the connection once all is sent."""
        if self.transport is not None:
            self.transport.close()

    async def gone(self, timeout_s: float) -> None:
        """Wait until a closed link has sent what it had, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._gone.wait()

    def abort(self, reason: str) -> None:
        """End the connection now."""
        self.reason = self.reason or reason
        if self.transport is not None:
            self.transport.abort()

    def refuse(self, kind: str, message: str) -> None:
        """Tell the peer why, and end the connection."""
        self.reason = self.reason or message
        self.send(pack(Kind.FAIL, [0, kind, message, {}]))
        self.close()

    def _parse(self) -> None:
        if self._parsing:  # `on_frame` released the link: the loop below goes on by itself
            return
        self._parsing = True
        try:
            self._frames()
        finally:
            self._parsing = False

    def _frames(self) -> None:
        buffer, at = self._buffer, 0
        while not self.held and self.alive and len(buffer) - at >= _HEAD.size:
            size, kind = _HEAD.unpack_from(buffer, at)
            if size > self._limit:
                self.refuse("ValueError", f"a message of {size} bytes is above the limit of {self._limit}")
                break
            start, end = at + _HEAD.size, at + _HEAD.size + size
            if len(buffer) < end:
                break
            at = end
            try:
                with memoryview(buffer) as view:
                    body = msgpack.unpackb(view[start:end], timestamp=3, strict_map_key=False)
                self._on_frame(self, Kind(kind), body)
            except (ValueError, TypeError, LookupError, msgpack.UnpackException):
                self.refuse("ValueError", f"this is not protocol {PROTOCOL}; is the other side a krablet?")
                break
        del buffer[:at]
        if self.reason:
            buffer.clear()


def _keep_alive(connection: socket.socket | None) -> None:
    """Notice within about a minute that the other machine is gone."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 15),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 45_000),
    ):
        if hasattr(socket, name):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
