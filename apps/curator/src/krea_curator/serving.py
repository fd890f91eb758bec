"""Readers, funnels and metrics as one process: `serve(dsns, Serving(reader="127.0.0.1:7610"))`.

It ends by SIGTERM or SIGINT: it takes no more calls, finishes those it has, stores what was taken, and closes.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from krea_data.krablet import Krablet
from krea_data.krablet.funnels.service import FunnelService
from krea_data.krablet.funnels.spool import Spool
from krea_data.krablet.queues.metrics import CONTENT_TYPE, Metrics
from krea_data.krablet.readers.process import Certificate, reading
from krea_data.krablet.rpc import Tokens
from krea_data.krablet.rpc import serve as serve_calls
from krea_data.krablet.rpc.loop import new_loop
from krea_data.krablet.rpc.wire import parse_address
from krea_data.krablet.shards import Shards
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

__all__ = ["Serving", "funnel_text", "serve", "watch_app"]

Text = Callable[[], Awaitable[str]]
Ready = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What to serve and where. `http` has the reader's verbs if there is a reader; health and metrics always."""

    reader: str | None = None
    funnel: str | None = None
    http: str | None = None
    tokens: Tokens | None = None
    certificate: Certificate | None = None
    spool: Path | None = None
    drain_s: float = 20.0


def serve(dsns: Sequence[str], what: Serving, on_ready: Callable[[dict[str, str]], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` is told what listens where once everything does."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with _serving(dsns, what) as where:
            on_ready(where)
            await stop.wait()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def watch_app(text: Text, ready: Ready) -> Starlette:
    """Health and metrics of a process: /health says that it runs, /ready whether it is any use, /metrics the rest."""

    async def health(_: Request) -> Response:
        return JSONResponse({"ok": True})

    async def is_ready(_: Request) -> Response:
        fine = await ready()
        return JSONResponse({"ready": fine}, 200 if fine else 503)

    async def metrics(_: Request) -> Response:
        return Response(await text(), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/health", health), Route("/ready", is_ready), Route("/metrics", metrics)])


def funnel_text(status: dict[str, Any]) -> str:
    """How a funnel stands, as Prometheus reads it."""
    kinds = {"rows": "gauge", "bytes": "gauge", "age_s": "gauge", "batches": "counter", "stored": "counter"}
    lines = []
    for key, kind in kinds.items():
        name = f"krablet_funnel_{'age_seconds' if key == 'age_s' else key}"
        name += "_total" if kind == "counter" else ""
        lines.append(f"# TYPE {name} {kind}")
        lines += [f'{name}{{lane="{lane}"}} {numbers[key]}' for lane, numbers in status["lanes"].items()]
    for key in ("spool_bytes", "requests"):
        lines += [f"# TYPE krablet_funnel_{key} gauge", f"krablet_funnel_{key} {status[key]}"]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def _serving(dsns: Sequence[str], what: Serving) -> AsyncIterator[dict[str, str]]:
    where: dict[str, str] = {}
    async with AsyncExitStack() as open_:
        if what.funnel is not None:
            service, address = await open_.enter_async_context(_funnelling(dsns, what.funnel, what))
            where["funnel"] = address
            if what.http is not None and what.reader is None:
                app = watch_app(_later(lambda: funnel_text(service.status())), _later(lambda: True))
                where["http"] = await open_.enter_async_context(_listening(app, what.http, what))
        if what.reader is not None:
            reader = await open_.enter_async_context(
                reading(
                    dsns,
                    what.reader,
                    what.tokens,
                    http=what.http,
                    certificate=what.certificate,
                    drain_s=what.drain_s,
                )
            )
            where["reader"] = reader.address
            if reader.http is not None:
                where["http"] = reader.http
        if what.reader is None and what.funnel is None and what.http is not None:
            metrics = await open_.enter_async_context(_metrics(dsns))
            app = watch_app(_later(metrics.text), _later(lambda: _any_up(metrics)))
            where["http"] = await open_.enter_async_context(_listening(app, what.http, what))
        yield where


@asynccontextmanager
async def _funnelling(dsns: Sequence[str], address: str, what: Serving) -> AsyncIterator[tuple[FunnelService, str]]:
    """A funnel as long as this is open; at the end it stores what it took."""
    sys.setswitchinterval(0.0005)  # lanes and the loop hand work to each other all the time
    tls = None if what.certificate is None else what.certificate.context()
    shards = await asyncio.to_thread(Shards, dsns, bits=None, patience_s=10.0)
    service = FunnelService(shards, spool=None if what.spool is None else Spool(what.spool))
    try:
        await service.start()
        server = await serve_calls(service, address, tokens=what.tokens, tls=tls, name="funnel", calls=100_000)
        try:
            yield service, server.address
        finally:
            await server.drain(what.drain_s)
    finally:
        await service.close()
        shards.close()


@asynccontextmanager
async def _metrics(dsns: Sequence[str]) -> AsyncIterator[Metrics]:
    krablet = await asyncio.to_thread(Krablet, dsns, patience_s=5.0)
    try:
        yield Metrics(krablet)
    finally:
        krablet.close()


class _Quiet(uvicorn.Server):
    """Leaves the signals to `serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Capture none."""
        yield


@asynccontextmanager
async def _listening(app: Starlette, address: str, what: Serving) -> AsyncIterator[str]:
    """An HTTP server as long as this is open: where it listens."""
    host, port = parse_address(address)
    place: dict[str, Any] = {"uds": host} if port < 0 else {"host": host, "port": port}
    if what.certificate is not None:
        place |= {"ssl_certfile": what.certificate.chain, "ssl_keyfile": what.certificate.key}
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=round(what.drain_s), **place
    )
    server = _Quiet(config)
    running = asyncio.create_task(server.serve())
    while not server.started and not running.done():
        await asyncio.sleep(0.005)
    if running.done():
        raise ValueError(f"cannot listen at {address}; it may be in use")
    try:
        yield address if port < 0 else f"{host}:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await running


def _later(work: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    """The work on a thread, so that the loop goes on."""
    return lambda: asyncio.to_thread(work)


def _any_up(metrics: Metrics) -> bool:
    return any(metrics.values()["krablet_shard_up"].values())
