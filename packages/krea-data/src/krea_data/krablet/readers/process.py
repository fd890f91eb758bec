"""A reader as a process: `run_reader(dsns, "0.0.0.0:7610", tokens, http="0.0.0.0:7611", tls=...)`.

It ends by SIGTERM or SIGINT: it says that it is not ready, takes no more calls, finishes those it has, and closes.
"""

import asyncio
import contextlib
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import uvicorn
except ImportError as error:
    raise ImportError("a reader needs uvicorn; install krea-data[serve]") from error

from krea_data.krablet.connection import patiently
from krea_data.krablet.readers.http import app
from krea_data.krablet.readers.measured import Counted, Measured
from krea_data.krablet.readers.reads import Limits, Reads
from krea_data.krablet.readers.service import ReaderService
from krea_data.krablet.rpc import Tokens, serve
from krea_data.krablet.rpc.loop import new_loop
from krea_data.krablet.rpc.wire import parse_address
from krea_data.krablet.table import Krablet

__all__ = ["Certificate", "Reader", "reading", "run_reader"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CLIENTS = 8192  # connections at a time
_KEEP_S = 120  # an idle HTTP connection; longer than clients and proxies keep theirs


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """Files of a certificate chain and its key, in PEM."""

    chain: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What a server needs of it; ValueError if the files are no such thing."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.chain, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"{self.chain} and {self.key} are no certificate and its key: {error}") from error
        return context


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A running reader: where it listens."""

    address: str
    http: str | None
    service: ReaderService


@asynccontextmanager
async def reading(
    dsns: Sequence[str],
    address: str,
    tokens: Tokens | None,
    *,
    http: str | None = None,
    certificate: Certificate | None = None,
    connections: int = 4,
    threads: int = 4,
    drain_s: float = 20.0,
    limits: Limits | None = None,
    **options: Any,
) -> AsyncIterator[Reader]:
    """A reader as long as this is open: `connections` a shard for reads and `threads` for work; it drains at the end.

    `http` is a further address, for HTTP. `options` are those of `Krablet`.
    """
    tls = None if certificate is None else certificate.context()
    options = {"patience_s": 10.0, **options}
    krablet = await asyncio.to_thread(patiently, lambda: Krablet(dsns, **options), options["patience_s"])
    reads = Reads(dsns, connections=connections, limits=limits)
    service, measured = ReaderService(reads, krablet, threads=threads), Measured()
    try:
        server = await serve(
            Counted(service, measured), address, tokens=tokens, tls=tls, connections=_CLIENTS, calls=_CLIENTS
        )
        try:
            async with _web(service, tokens, measured, http, certificate, drain_s) as where:
                yield Reader(address=server.address, http=where, service=service)
                measured.stopping = True
        finally:
            measured.stopping = True
            await server.drain(drain_s)
    finally:
        await reads.close()
        service.close()
        krablet.close()


def run_reader(
    dsns: Sequence[str],
    address: str,
    tokens: Tokens | None,
    *,
    on_ready: Callable[[Reader], None] | None = None,
    **options: Any,
) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` is told where. `options` are those of `reading`."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with reading(dsns, address, tokens, **options) as reader:
            if on_ready is not None:
                on_ready(reader)
            await stop.wait()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


class _Quiet(uvicorn.Server):
    """Leaves the signals to `run_reader`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Capture none."""
        yield


@asynccontextmanager
async def _web(
    service: ReaderService,
    tokens: Tokens | None,
    measured: Measured,
    http: str | None,
    certificate: Certificate | None,
    drain_s: float,
) -> AsyncIterator[str | None]:
    """The HTTP server at this address, if there is one; what it listens at."""
    if http is None:
        yield None
        return
    host, port = parse_address(http)
    if tokens is None and port >= 0 and host not in _LOOPBACK:
        raise ValueError(f"{http} can be reached from elsewhere; give tokens, or use 127.0.0.1 or unix:/path")
    files = {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key} if certificate is not None else {}
    place = {"uds": host} if port < 0 else {"host": host, "port": port}
    config = uvicorn.Config(
        app(service, tokens=tokens, measured=measured),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=_KEEP_S,
        timeout_graceful_shutdown=round(drain_s),
        **place,  # type: ignore[arg-type]
        **files,  # type: ignore[arg-type]
    )
    server = _Quiet(config)
    running = asyncio.create_task(server.serve())
    while not server.started and not running.done():
        await asyncio.sleep(0.005)
    if running.done():
        raise ValueError(f"cannot listen at {http}; it may be in use")
    if port == 0:
        port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield http if config.uds else f"{host}:{port}"
    finally:
        server.should_exit = True
        await running
