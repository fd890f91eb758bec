import asyncio
import datetime
import gc
import os
import socket
import ssl
import stat
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trustme
from krea_data.krablet import ShardDown
from krea_data.krablet.rpc import Broken, Busy, Caller, Client, Refused, Remote, RpcError, Server, Tokens, serve
from krea_data.krablet.rpc.loop import LoopThread, new_loop
from krea_data.krablet.rpc.wire import WINDOW, Kind, pack, parse_address


class Echo:
    """A service with a verb for every behaviour."""

    def __init__(self) -> None:
        self.made = 0  # parts of streams
        self.cancelled = 0
        self.running = 0
        self.most = 0
        self.open = asyncio.Event()

    @property
    def scopes(self) -> Mapping[str, str]:
        return dict.fromkeys(["echo", "fail", "count", "wait"], "read") | {"who": "admin"}

    async def call(self, verb: str, args: dict[str, Any], caller: Caller) -> Any:
        if verb == "fail":
            raise ERRORS[args["kind"]]
        if verb == "count":
            return self.count(args["n"], args["bytes"])
        if verb == "who":
            return caller.name
        if verb == "wait":
            await self.wait()
        return args.get("value")

    async def wait(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def count(self, n: int, size: int) -> AsyncIterator[Any]:
        for number in range(n):
            self.made = number + 1
            yield [number, b"." * size]
        if n == 3:
            raise ValueError("three is too few")


ERRORS: dict[str, Exception] = {
    "value": ValueError("id 'x' is odd"),
    "shard": ShardDown("shard 1 does not answer"),
    "lookup": KeyError("no map 'm'"),
    "busy": Busy("full", 2.5),
    "other": RuntimeError("password=hunter2"),
}


@pytest.fixture(params=[asyncio.new_event_loop, new_loop], ids=["asyncio", "uvloop"], autouse=True)
def loops(request: pytest.FixtureRequest) -> None:
    """Every test runs on both event loops."""
    LOOPS["now"] = request.param


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {}


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=LOOPS["now"]) as runner:
        runner.run(asyncio.wait_for(work, 60))


async def until(ready: Any) -> None:
    while not ready():
        await asyncio.sleep(0.005)


def test_values_and_errors_arrive_as_they_are(tmp_path: Path) -> None:
    async def work() -> None:
        server = await serve(Echo(), f"unix:{tmp_path}/s", tokens=None)
        value = {"a": [1, None, 2.5, "ü", b"\0"], "t": datetime.datetime.now(datetime.UTC), "n": {1: True}}
        async with await Client.connect(server.address) as client:
            assert await client.call("echo", value=value) == value
            for kind, expected in [("value", ValueError), ("shard", ShardDown), ("lookup", LookupError)]:
                with pytest.raises(expected) as caught:
                    await client.call("fail", kind=kind)
                assert caught.value.args == ERRORS[kind].args
            with pytest.raises(Busy, match="full") as busy:
                await client.call("fail", kind="busy")
            assert busy.value.retry_after_s == 2.5
            with pytest.raises(RpcError, match="RuntimeError") as other:
                await client.call("fail", kind="other")
            assert "hunter2" not in str(other.value)
            with pytest.raises(LookupError, match="no verb 'drop'"):
                await client.call("drop")
            with pytest.raises(ValueError, match="cannot be sent"):
                await client.call("echo", value=object())
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        assert await server.drain()
        assert not (tmp_path / "s").exists()

    run(work())


def test_tokens_decide_who_may_do_what(tmp_path: Path) -> None:
    tokens = Tokens.load(tmp_path / "tokens.json")
    reader, boss = tokens.add("reader", ["read"]), tokens.add("boss", ["admin"])

    async def work() -> None:
        server = await serve(Echo(), "127.0.0.1:0", tokens=Tokens.load(tmp_path / "tokens.json"))
        for wrong in [None, "", "wrong", reader[:-1]]:
            with pytest.raises(Refused, match="does not know this token"):
                await Client.connect(server.address, token=wrong)
        async with await Client.connect(server.address, token=reader) as client:
            assert await client.call("echo", value=1) == 1
            with pytest.raises(Refused, match="scope 'admin'"):
                await client.call("who")
        async with await Client.connect(server.address, token=boss) as client:
            assert (await client.call("who"), await client.call("echo")) == ("boss", None)
        late = tokens.add("late", ["read"])
        await (await Client.connect(server.address, token=late)).close()
        tokens.remove("reader")
        with pytest.raises(Refused):
            await Client.connect(server.address, token=reader)
        await server.drain()

    run(work())


def test_the_file_of_tokens_holds_no_secrets_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens = Tokens.load(path)
    secret = tokens.add("me", ["read", "write"])
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Tokens.load(path).check(secret) == Caller("me", frozenset({"read", "write"}))
    for name, scopes, said in [
        ("a b", ["read"], "name"),
        ("x", ["root"], "scopes"),
        ("x", [], "scopes"),
        ("me", ["read"], "already"),
    ]:
        with pytest.raises(ValueError, match=said):
            tokens.add(name, scopes)
    with pytest.raises(LookupError, match="no token 'you'"):
        tokens.remove("you")
    for mode in (0o400, 0o440, 0o640):  # as a secret is mounted with a group
        path.chmod(mode)
        assert Tokens.load(path).check(secret) is not None
    for mode in (0o644, 0o604, 0o660, 0o650, 0o601):
        path.chmod(mode)
        with pytest.raises(ValueError, match="others may read"):
            Tokens.load(path)
    path.chmod(0o600)
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds no tokens"):
        Tokens.load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_file_of_somebody_else_is_private_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    Tokens.load(path).add("me", ["read"])
    path.chmod(0o640)
    os.chown(path, 65534, -1)
    with pytest.raises(ValueError, match="others may read"):
        Tokens.load(path)
    path.chmod(0o600)
    assert Tokens.load(path).names == ["me"]


def test_without_tokens_only_this_machine_may_call() -> None:
    async def work() -> None:
        with pytest.raises(ValueError, match="can be reached from elsewhere"):
            await serve(Echo(), "0.0.0.0:0", tokens=None)

    run(work())


def test_tls_with_a_real_chain_and_not_with_a_stranger() -> None:
    authority = trustme.CA()
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(server_tls)
    client_tls = ssl.create_default_context()
    authority.configure_trust(client_tls)

    async def work() -> None:
        server = await serve(Echo(), "127.0.0.1:0", tokens=None, tls=server_tls)
        async with await Client.connect(server.address, tls=client_tls) as client:
            assert await client.call("echo", value="x" * 3_000_000) == "x" * 3_000_000
        with pytest.raises(Broken, match="certificate"):
            await Client.connect(server.address, tls=ssl.create_default_context())
        with pytest.raises(Broken):
            await Client.connect(server.address, patience_s=0.2)
        await server.drain()

    run(work())


def test_an_oversized_message_is_refused_on_both_sides() -> None:
    async def work() -> None:
        server = await serve(Echo(), "127.0.0.1:0", tokens=None, body_bytes=1000)
        async with await Client.connect(server.address, body_bytes=100) as client:
            with pytest.raises(ValueError, match="above the limit of 100"):
                await client.call("echo", value="x" * 200)
            assert await client.call("echo", value=1) == 1
        async with await Client.connect(server.address) as client:
            with pytest.raises(Broken, match="above the limit of 1000"):
                await client.call("echo", value="x" * 2000)
            assert await client.call("echo", value=2) == 2
        await server.drain()

    run(work())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">IB", 3, 77) + b"abc",
        pack(Kind.CALL, [1, "echo", {}]),
        pack(Kind.HELLO, {"protocol": 99}),
        pack(Kind.HELLO, {"protocol": 1}) + pack(Kind.CALL, "nonsense"),
        pack(Kind.HELLO, {"protocol": 1}) + struct.pack(">IB", 4, Kind.CALL) + b"\xc1\xc1\xc1\xc1",
    ],
)
def test_garbage_ends_its_own_connection_only(sent: bytes) -> None:
    async def work() -> None:
        server = await serve(Echo(), "127.0.0.1:0", tokens=None)
        async with await Client.connect(server.address) as client:
            reader, writer = await asyncio.open_connection(*parse_address(server.address))
            writer.write(sent)
            said = await reader.read()
            last = msgpack.unpackb(said[said.rindex(b"\x94\x00") :], strict_map_key=False)
            assert last[:2] == [0, "ValueError"]
            writer.close()
            assert await client.call("echo", value=1) == 1
        await server.drain()

    run(work())


def test_who_says_nothing_is_cut_off() -> None:
    async def work() -> None:
        server = await serve(Echo(), "127.0.0.1:0", tokens=None, hello_s=0.05)
        reader, writer = await asyncio.open_connection(*parse_address(server.address))
        writer.write(b"\0\0")
        with _quietly():
            assert await reader.read() == b""
        await until(lambda: not server.open)
        writer.close()
        await server.drain()

    run(work())


class _quietly:  # noqa: N801 - reads as a statement
    """An aborted connection ends with or without an error."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, ConnectionError)


def test_a_lost_connection_breaks_its_calls_and_comes_back(tmp_path: Path) -> None:
    async def work() -> None:
        echo, address = Echo(), f"unix:{tmp_path}/s"
        server = await serve(echo, address, tokens=None)
        async with await Client.connect(address) as client:
            once, again = (
                asyncio.ensure_future(client.call("wait")),
                asyncio.ensure_future(client.repeat("wait", value=7)),
            )
            await until(lambda: echo.running == 2)
            assert not await server.drain(0.05)
            with pytest.raises(Broken, match="was lost"):
                await once
            assert echo.cancelled == 2
            echo.open.set()
            server = await serve(echo, address, tokens=None)
            assert await again == 7
        await server.drain()
        with pytest.raises(Broken, match="does not answer"):
            await Client.connect(address, patience_s=0.05)

    run(work())


def test_a_lost_connection_for_which_nobody_waits_is_not_complained_about(tmp_path: Path) -> None:
    async def work() -> None:
        complaints: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        echo = Echo()
        server = await serve(echo, f"unix:{tmp_path}/s", tokens=None)
        client = await Client.connect(server.address, patience_s=0.1)
        stuck = asyncio.ensure_future(client.call("wait"))
        await until(lambda: echo.running == 1)
        assert client._link is not None
        client._link.pause_writing()
        full = asyncio.ensure_future(client.call("echo"))
        await asyncio.sleep(0)
        assert not await server.drain(0.05)
        full.cancel()  # which has not noticed yet that its connection is gone
        client._link.close()  # while its end is still to come, the next one fails
        with pytest.raises(Broken, match="does not answer"):
            await client.call("echo")
        assert [type(one) for one in await asyncio.gather(stuck, full, return_exceptions=True)] == [
            Broken,
            asyncio.CancelledError,
        ]
        await client.close()
        del client, stuck, full
        gc.collect()
        assert complaints == []

    run(work())


def test_a_half_open_server_is_given_up_in_time() -> None:
    """It accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"

        async def work() -> None:
            with pytest.raises(Broken, match="does not answer"):
                await Client.connect(address, patience_s=0.1)

        run(work())


def test_who_waits_for_the_try_of_another_has_no_patience_left(tmp_path: Path) -> None:
    class Counting(Client):
        tries = 0

        async def _dial(self, timeout_s: float) -> Any:
            self.tries += 1
            raise ConnectionRefusedError

    async def work() -> None:
        client = Counting(f"unix:{tmp_path}/s", patience_s=0.2)
        found = await asyncio.gather(*(client.call("echo") for _ in range(20)), return_exceptions=True)
        assert {type(one) for one in found} == {Broken}
        assert client.tries <= 4 + 19 * 2

    run(work())


def test_a_call_may_have_a_time_limit_and_is_then_cancelled(tmp_path: Path) -> None:
    async def work() -> None:
        echo = Echo()
        server = await serve(echo, f"unix:{tmp_path}/s", tokens=None)
        async with await Client.connect(server.address, timeout_s=0.05) as client:
            with pytest.raises(Broken, match=r"within 0\.05 s"):
                await client.call("wait")
            await until(lambda: echo.cancelled == 1)
        await server.drain()

    run(work())


def test_a_slow_reader_holds_up_its_stream_and_nobody_else(tmp_path: Path) -> None:
    async def work() -> None:
        echo = Echo()
        server = await serve(echo, f"unix:{tmp_path}/s", tokens=None)
        async with await Client.connect(server.address) as client:
            seen = []
            async for number, _ in client.stream("count", n=500, bytes=10_000):
                seen.append(number)
                if number == 20:
                    # The stream waits for us, and its connection is free for other calls.
                    assert [await client.call("echo", value=n) for n in range(50)] == list(range(50))
                    assert echo.made <= number + WINDOW + 2
            assert seen == list(range(500))
            with pytest.raises(ValueError, match="three is too few"):
                [part async for part in client.stream("count", n=3, bytes=1)]
            parts = client.stream("count", n=10**9, bytes=1)
            await anext(parts)
            await parts.aclose()
            made = echo.made
            assert await client.call("echo", value=1) == 1
            assert echo.made <= made + WINDOW
        await server.drain()

    run(work())


def test_who_reads_no_answers_is_not_read_from_and_cut_off(tmp_path: Path) -> None:
    async def work() -> None:
        echo = Echo()
        server = await serve(echo, f"unix:{tmp_path}/s", tokens=None, calls_per_connection=4, stall_s=0.3)
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(f"{tmp_path}/s")
            rude.setblocking(False)
            rude.send(pack(Kind.HELLO, {"protocol": 1, "token": None}))
            loop = asyncio.get_running_loop()
            sent = 0
            with _quietly():
                while sent < 2000:
                    frame = pack(Kind.CALL, [sent, "echo", {"value": "x" * 50_000}])
                    await asyncio.wait_for(loop.sock_sendall(rude, frame), 20)
                    sent += 1
            assert sent < 200  # it could not fill the server's memory
            await until(lambda: not server.open)
        await server.drain()

    run(work())


def test_calls_in_flight_are_bounded(tmp_path: Path) -> None:
    async def work() -> None:
        echo = Echo()
        server = await serve(echo, f"unix:{tmp_path}/s", tokens=None, calls=5, calls_per_connection=3)
        clients = [await Client.connect(server.address) for _ in range(3)]
        calls = [asyncio.ensure_future(client.call("wait", value=n)) for n in range(8) for client in clients]
        await until(lambda: echo.running == 5)
        await asyncio.sleep(0.02)
        assert [len(connection.calls) for connection in server.open] == [3, 3, 3]
        echo.open.set()
        assert sorted(await asyncio.gather(*calls)) == [n for n in range(8) for _ in clients]
        assert echo.most == 5
        for client in clients:
            await client.close()
        await server.drain()

    run(work())


def test_drain_finishes_what_is_in_flight(tmp_path: Path) -> None:
    async def work() -> None:
        echo = Echo()
        server = await serve(echo, f"unix:{tmp_path}/s", tokens=None)
        async with await Client.connect(server.address, patience_s=0.2) as client:
            call = asyncio.ensure_future(client.call("wait", value=5))
            await until(lambda: echo.running == 1)
            draining = asyncio.ensure_future(server.drain(10))
            await asyncio.sleep(0.02)
            with pytest.raises(Busy, match="shutting down"):
                await client.call("echo")
            echo.open.set()
            assert (await call, await draining) == (5, True)
            with pytest.raises(Broken):
                await client.call("echo")

    run(work())


def test_a_socket_in_use_is_not_taken_and_a_dead_one_is(tmp_path: Path) -> None:
    async def work() -> None:
        address = f"unix:{tmp_path}/s"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{tmp_path}/s")
        server = await serve(Echo(), address, tokens=None)
        with pytest.raises(ValueError, match="another server listens"):
            await serve(Echo(), address, tokens=None)
        await server.drain()
        (tmp_path / "s").write_text("a file")
        with pytest.raises(ValueError, match="no socket"):
            await serve(Echo(), address, tokens=None)

    run(work())


@pytest.mark.parametrize("address", ["", "host", "host:", "host:x", "host:99999", "unix:", "unix:/" + "x" * 200])
def test_a_bad_address_is_named(address: str) -> None:
    with pytest.raises(ValueError, match=r"address|path"):
        parse_address(address)


def serving(path: Path) -> tuple[LoopThread, Server]:
    thread = LoopThread("server")
    return thread, thread.run(serve(Echo(), f"unix:{path}/s", tokens=None))


def test_remote_serves_many_threads(tmp_path: Path) -> None:
    thread, server = serving(tmp_path)
    with Remote(server.address) as remote:
        answers: dict[int, list[int]] = {}

        def work(seed: int) -> None:
            answers[seed] = [remote.call("echo", value=seed * 100 + n) for n in range(50)]

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert answers == {seed: [seed * 100 + n for n in range(50)] for seed in range(8)}
        assert [number for number, _ in remote.stream("count", n=30, bytes=1)] == list(range(30))
        for number, _ in remote.stream("count", n=10**9, bytes=1):
            if number == 5:
                break
        assert remote.repeat("echo", value=1) == 1
    with pytest.raises(Broken, match="closed"):
        remote.call("echo")
    thread.run(server.drain())
    thread.stop()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_connects_anew(tmp_path: Path) -> None:
    thread, server = serving(tmp_path)
    with Remote(server.address) as remote:
        assert remote.call("echo", value=1) == 1
        child = os.fork()
        if not child:
            os._exit(0 if remote.call("echo", value=2) == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert remote.call("echo", value=3) == 3
    thread.run(server.drain())
    thread.stop()


def test_the_collector_may_end_a_stream_on_the_loops_own_thread(tmp_path: Path) -> None:
    thread, server = serving(tmp_path)
    with Remote(server.address) as remote:
        begun = remote.stream("count", n=10**9, bytes=1)
        next(begun)
        cycle: list[Any] = [begun]
        cycle.append(cycle)  # so that only the collector can free it
        del begun, cycle
        assert remote._thread is not None
        remote._thread.post(gc.collect)
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(remote.call("echo", value=1)), daemon=True)
        asking.start()
        asking.join(20)
        assert answers == [1], "the loop waits for itself"
    thread.run(server.drain())
    thread.stop()
