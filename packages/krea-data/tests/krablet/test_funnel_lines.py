"""Clients of a funnel on lines that nothing passes any more, although nobody has closed them."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from krea_data.krablet.funnels.client import FunnelClient
from krea_data.krablet.rpc import Caller, Server, serve
from krea_data.krablet.rpc.loop import LoopThread


class Inbox:
    """A funnel that only counts how often each request comes."""

    scopes: Mapping[str, str] = {"describe": "write", "write": "write"}

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()

    async def call(self, verb: str, args: dict[str, Any], caller: Caller) -> Any:
        if verb == "describe":
            return [["n", "int", "add"]]
        self.seen[args["seq"]] += 1
        return None


class Valve:
    """Passes connections to `inside` on to `outside` until it is shut; later ones pass again."""

    def __init__(self, outside: Path, inside: Path) -> None:
        self.outside, self.inside = outside, inside
        self.lines = 0
        self.shut: dict[bool, int] = {True: 0, False: 0}  # by whether it is asked or answered: lines below are shut
        self._ways: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        self._server = await asyncio.start_unix_server(self._relay, self.outside)

    async def close(self) -> None:
        self._server.close()
        for way in self._ways:
            way.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.lines = self.lines, self.lines + 1
        far_reader, far_writer = await asyncio.open_unix_connection(self.inside)
        for ends, asks in (((reader, far_writer), True), ((far_reader, writer), False)):
            way = asyncio.ensure_future(self._carry(*ends, number, asks))
            self._ways.add(way)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, asks: bool) -> None:
        try:
            while piece := await reader.read(1 << 14):
                if number >= self.shut[asks]:
                    writer.write(piece)
        finally:
            writer.transport.abort()


@contextmanager
def a_valve(folder: Path) -> Iterator[tuple[Inbox, Valve]]:
    """An inbox behind a valve."""
    thread, inbox, valve = LoopThread("inbox"), Inbox(), Valve(folder / "outside", folder / "inside")
    server: Server = thread.run(serve(inbox, f"unix:{folder}/inside", tokens=None))
    thread.run(valve.serve())
    yield inbox, valve
    thread.run(valve.close())
    thread.run(server.drain())
    thread.stop()


@pytest.mark.parametrize(("shut", "times"), [((True, False), 1), ((False,), 2)])
def test_a_line_that_nothing_passes_is_given_up(tmp_path: Path, shut: tuple[bool, ...], times: int) -> None:
    """The request goes over another one, under its number, also where only the answer was lost."""
    with a_valve(tmp_path) as (inbox, valve), FunnelClient(f"unix:{tmp_path}/outside", timeout_s=0.3) as funnel:
        target = funnel.target("record:clicks")
        target.write("a", {"n": 1}).result(30)
        valve.shut.update(dict.fromkeys(shut, valve.lines))
        target.write("b", {"n": 1}).result(50)
        assert inbox.seen == {0: 1, 1: times}
        assert valve.lines == 2


def test_a_client_has_the_patience_that_it_was_given(tmp_path: Path) -> None:
    with a_valve(tmp_path), FunnelClient(f"unix:{tmp_path}/outside", patience_s=25.0) as funnel:
        assert funnel._inner.client.patience_s == 25.0
        assert funnel._inner.client.timeout_s == 30.0
