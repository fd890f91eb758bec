"""A funnel in a process of its own."""

import asyncio
import signal
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from krea_data.krablet.connection import patiently
from krea_data.krablet.funnels.lane import Limits
from krea_data.krablet.funnels.service import FunnelService
from krea_data.krablet.funnels.spool import Spool
from krea_data.krablet.rpc.loop import new_loop
from krea_data.krablet.rpc.server import serve
from krea_data.krablet.rpc.tokens import Tokens
from krea_data.krablet.shards import Shards

__all__ = ["run_funnel", "serve_funnel"]


def run_funnel(
    dsns: Sequence[str],
    address: str,
    *,
    tokens: Tokens | None = None,
    spool: Path | str | None = None,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    patience_s: float = 10.0,
    drain_s: float = 30.0,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then store what was taken and return.

    `ready` gets the address once the spool is stored and clients may come.
    """
    sys.setswitchinterval(0.0005)  # lanes and the loop hand work to each other all the time
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve_funnel(dsns, address, tokens, spool, tls, limits, patience_s, drain_s, ready))


async def serve_funnel(
    dsns: Sequence[str],
    address: str,
    tokens: Tokens | None,
    spool: Path | str | None,
    tls: ssl.SSLContext | None,
    limits: Limits | None,
    patience_s: float,
    drain_s: float,
    ready: Callable[[str], None] | None,
) -> None:
    """`run_funnel` on a loop that runs."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    shards = await asyncio.to_thread(patiently, lambda: Shards(dsns, bits=None, patience_s=patience_s), patience_s)
    service = FunnelService(shards, spool=None if spool is None else Spool(spool), limits=limits)
    try:
        await service.start()
        server = await serve(service, address, tokens=tokens, tls=tls, name="funnel", calls=100_000)
        if ready is not None:
            ready(server.address)
        await stop.wait()
        await server.drain(drain_s)
    finally:
        await service.close()
        shards.close()
