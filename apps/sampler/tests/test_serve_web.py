"""The server over real HTTP on a free port, with a tiny model: boards, pictures, refusals, a clean end."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from krea_sampler import picture
from krea_sampler.compose import Setup, artist
from krea_sampler.drawing import draw
from krea_sampler.explore import Mixture, blend
from krea_sampler.order import Order
from krea_sampler.safety import Safety
from krea_sampler.serve import address, listening
from krea_sampler.serve.engine import Engine
from krea_sampler.serve.server import Server
from PIL import Image

JSON = {"Content-Type": "application/json"}


@contextmanager
def serving(model: Path, out: Path, host: str = "127.0.0.1", safety: Safety | None = None) -> Iterator[Server]:
    """A server whose threads have all ended when the block is left."""
    before = set(threading.enumerate())
    setup = Setup(model=model)
    with listening(artist(setup), setup, out, host=host, port=0, safety=safety) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
    assert set(threading.enumerate()) <= before


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(model, tmp_path / "out") as found:
        yield found


def end(server: Server) -> tuple[str, int]:
    """Host and port."""
    host, port = server.server_address[:2]
    return str(host), port


class Answer:
    """Status, headers and body of one request."""

    def __init__(self, found: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = found.status, found.headers, found.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    server: Server, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection(*end(server), timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
    try:
        connection.request(method, path, data, JSON if headers is None else headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def ask(server: Server, **body: object) -> str:
    answer = request(server, "POST", "/api/boards", body)
    assert answer.status == 200, answer.body
    return answer.json["id"]


def events(server: Server, last: str = "") -> Generator[tuple[str, dict[str, Any]]]:
    """(id, data) of server-sent events, read as the standard says: lines, a blank one ends an event."""
    connection = http.client.HTTPConnection(*end(server), timeout=30)
    connection.request("GET", "/api/events", headers={"Last-Event-ID": last} if last else {})
    stream = connection.getresponse()
    assert stream.headers["Content-Type"] == "text/event-stream"
    try:
        number, data = "", ""
        for line in stream:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "id":
                number = value
            elif name == "data":
                data = value
            elif not name and data:
                yield number, json.loads(data)
                data = ""
    finally:
        stream.close()
        connection.close()


def done(server: Server, board: str) -> dict[str, Any]:
    """Wait until a board is finished; its last view with all of its tiles."""
    tiles: dict[str, Any] = {}
    stream = events(server)
    for _, event in stream:
        for one in event["boards"]:
            if one["id"] == board:
                tiles |= one["tiles"]
                if len(tiles) == one["count"] and all(tile["state"] == "done" for tile in tiles.values()):
                    stream.close()
                    return one | {"tiles": tiles}
    raise AssertionError("the stream ended")


def pixels(answer: Answer) -> tuple[Image.Image, dict[str, Any]]:
    assert answer.status == 200
    image = Image.open(BytesIO(answer.body), formats=["PNG"])
    return image.convert("RGB"), json.loads(image.info["krea"])


def test_a_board_is_what_the_command_draws(server: Server, model: Path) -> None:
    board = ask(server, kind="draw", prompt="a red fox", seed="40", count=3)
    view = done(server, board)
    assert [view["tiles"][str(i)]["caption"] for i in range(3)] == ["seed 40", "seed 41", "seed 42"]
    painter = artist(Setup(model=model))
    for number, expected in enumerate(draw(painter, Order(prompts=("a red fox",), seeds=(40, 41, 42)))):
        image, parameters = pixels(request(server, "GET", f"/api/boards/{board}/{number}.png"))
        assert image.tobytes() == expected.image.tobytes()
        assert Order.of(parameters) == Order.of(expected.parameters)


def test_mixtures_repeat_bit_for_bit_from_their_png(server: Server) -> None:
    board = ask(server, kind="draw", prompt="a red fox", seed="40", count=2)
    done(server, board)
    way = ask(server, kind="between", of={"board": board, "tile": 0}, to={"board": board, "tile": 1}, count=4)
    more = ask(server, kind="more", of={"board": way, "tile": 1}, distance=0.4, count=3)
    toward = ask(server, kind="toward", of={"board": more, "tile": 2}, prompt="a rocket", count=3)
    for name, tile in ((way, 1), (more, 2), (toward, 1)):
        done(server, name)
        image, parameters = pixels(request(server, "GET", f"/api/boards/{name}/{tile}.png"))
        assert parameters["origin"]["parents"]
        text = request(server, "GET", f"/api/boards/{name}/{tile}").json["parameters"]
        assert json.loads(text) == parameters
        again = ask(server, kind="repeat", parameters=text)
        mixture, settings = (engine := server.studio.engine).recipe(parameters)
        assert Engine(engine.artist).draw(mixture, settings).image.tobytes() == image.tobytes()
        done(server, again)
        repeated, same = pixels(request(server, "GET", f"/api/boards/{again}/0.png"))
        assert (repeated.tobytes(), same) == (image.tobytes(), parameters)
    expected = blend(Mixture.pure("a red fox", 40), Mixture.pure("a red fox", 41), 1 / 3)
    _, parameters = pixels(request(server, "GET", f"/api/boards/{way}/1.png"))
    assert Mixture.of(parameters["mixture"]) == expected


def test_keeping_and_finding_again(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serving(model, out) as server:
        board = ask(server, kind="draw", prompt="a red fox", seed="4", count=1)
        done(server, board)
        assert request(server, "POST", f"/api/boards/{board}/0/keep", {}).json == {"kept": "a-red-fox-s4.png"}
        assert request(server, "POST", f"/api/boards/{board}/0/keep", {}).json == {"kept": "a-red-fox-s4.png"}
        assert [path.name for path in out.iterdir()] == ["a-red-fox-s4.png"]
        png = request(server, "GET", f"/api/boards/{board}/0.png").body
        assert (out / "a-red-fox-s4.png").read_bytes() == png
    with serving(model, out) as server:
        _, event = next(stream := events(server))
        stream.close()
        (shelf,) = event["boards"]
        assert (shelf["kind"], shelf["tiles"]["0"]["kept"]) == ("kept", "a-red-fox-s4.png")
        assert request(server, "GET", f"/api/boards/{shelf['id']}/0.png").body == png
        more = ask(server, kind="more", of={"board": shelf["id"], "tile": 0}, distance=0.2, count=2)
        done(server, more)


class Prudish:
    """Lets no rocket be drawn, and of the rest nothing be seen."""

    def check_prompt(self, prompt: str) -> str | None:
        return "no rockets" if "rocket" in prompt else None

    def check_image(self, image: Image.Image) -> str | None:
        return "nothing may be seen"


def test_a_safety_classifier_has_the_last_word(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        board = ask(server, kind="draw", prompt="a red fox", count=1)
        done(server, board)
        assert request(server, "POST", f"/api/boards/{board}/0/keep", {}).status == 200
    with serving(model, tmp_path, safety=Prudish()) as server:
        answer = request(server, "POST", "/api/boards", {"kind": "draw", "prompt": "a rocket", "count": 1})
        assert (answer.status, "no rockets" in answer.json["error"]) == (400, True)
        board = ask(server, kind="draw", prompt="a red fox", count=2)
        tiles: dict[str, Any] = {}
        for _, event in (stream := events(server)):
            assert not any(one["count"] for one in event["boards"] if one["kind"] == "kept")
            for one in event["boards"]:
                tiles |= one["tiles"]
            assert not any(tile["preview"] for tile in tiles.values())
            if [tile["state"] for tile in tiles.values()] == ["failed", "failed"]:
                stream.close()
                break
        assert ["nothing may be seen" in tile["error"] for tile in tiles.values()] == [True, True]
        assert request(server, "GET", f"/api/boards/{board}/1.png").status == 404


def test_a_full_disk_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    board = ask(server, kind="draw", prompt="a red fox", count=1)
    done(server, board)
    monkeypatch.setattr(os, "fsync", full)
    answer = request(server, "POST", f"/api/boards/{board}/0/keep", {})
    assert answer.status == 500
    assert re.search(r"cannot write .*\.png \(No space left on device\); make room", answer.json["error"])


def test_a_stream_goes_on_where_it_broke_off(server: Server) -> None:
    board = ask(server, kind="draw", prompt="a red fox", count=1)
    done(server, board)
    number, event = next(stream := events(server))
    stream.close()
    assert [one["id"] for one in event["boards"]][1:] == [board]
    _, later = next(stream := events(server, number))
    stream.close()
    assert (later["boards"], later["order"]) == ([], event["order"])
    _, other = next(stream := events(server, "0000-99"))  # of a server that is gone
    stream.close()
    assert other["boards"] == event["boards"]


def test_boards_are_stopped_taken_down_and_put_back(server: Server) -> None:
    board = ask(server, kind="draw", prompt="a red fox", count=2)
    done(server, board)
    for action, shown in (("stop", True), ("resume", True), ("remove", False), ("restore", True)):
        assert request(server, "POST", f"/api/boards/{board}/{action}", {}).status == 200
        _, event = next(stream := events(server))
        stream.close()
        assert (board in event["order"]) == shown


@pytest.mark.parametrize("name", ["a-fox", "ein-füchs-🦊"])
def test_a_download_has_the_name_of_its_prompt(server: Server, name: str) -> None:
    board = ask(server, kind="draw", prompt=name, seed=1, count=1)
    done(server, board)
    shown = request(server, "GET", f"/api/boards/{board}/0.png?download").headers["Content-Disposition"]
    _, value = shown.split("filename*=UTF-8''")
    assert unquote(value) == f"{picture.stem(name, 1)}.png"


def test_the_page_needs_nothing_from_elsewhere(server: Server) -> None:
    for path, kind in (("/", "text/html"), ("/main.js", "text/javascript"), ("/page.css", "text/css")):
        answer = request(server, "GET", path)
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert b"//" not in answer.body.replace(b"// ", b"")  # no address of another machine


def test_a_wrong_ask_is_a_400_with_its_sentence(server: Server) -> None:
    answer = request(server, "POST", "/api/boards", {"kind": "draw", "prompt": "a fox", "count": 1, "steps": 0})
    assert answer.status == 400
    assert answer.json == {"error": "'0' steps; use a whole number from 1 to 1000"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {"Host": "evil.example"}, 403),
        ("GET", "/", None, {"Host": "evil.example:7860"}, 403),
        ("GET", "/", None, {"Host": "127.0.0.1.evil.example"}, 403),
        ("GET", "/", None, {"Host": "["}, 403),
        ("GET", "/", None, {"Host": "localhost:1234"}, 200),
        ("GET", "/", None, {"Host": "[::1]:1234"}, 200),
        ("GET", "/", None, {"Host": "192.168.1.20:7860"}, 200),
        ("GET", "/api/about", None, {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", "/api/about", None, {"Sec-Fetch-Site": "same-site"}, 403),
        ("GET", "/", None, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ("GET", "/api/about", None, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ("POST", "/api/boards", {}, {**JSON, "Origin": "http://evil.example"}, 403),
        ("POST", "/api/boards", {}, {**JSON, "Origin": "null"}, 403),
        ("POST", "/api/boards", {}, {**JSON, "Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ("POST", "/api/boards", {}, {**JSON, "Host": "localhost:1", "Origin": "http://localhost:1"}, 400),
        ("POST", "/api/boards", {}, {"Content-Type": "text/plain"}, 415),
        ("POST", "/api/boards", b"{", JSON, 400),
        ("POST", "/api/boards", b"\xff", JSON, 400),
        ("POST", "/api/boards", b"[" * 100_000, JSON, 400),
        ("POST", "/api/boards", b'{"kind": "draw", "prompt": "a", "count": 1, "guidance": NaN}', JSON, 400),
        ("POST", "/api/boards", b"[]" * (1 << 18), JSON, 413),
        ("POST", "/api/boards", b"", {**JSON, "Content-Length": "-1"}, 411),
        ("POST", "/api/boards", b"", {**JSON, "Content-Length": "9" * 30}, 413),
        ("POST", "/api/boards/none/stop", {}, JSON, 404),
        ("POST", "/api/boards/none/0/keep", {}, JSON, 404),
        ("POST", "/", {}, JSON, 405),
        ("GET", "/api/boards/none/0.png", None, {}, 404),
        ("GET", "/api/boards/none/0/keep", None, {}, 405),
        ("GET", "/../../../../etc/passwd", None, {}, 404),
        ("GET", "//etc/passwd", None, {}, 404),
        ("GET", "/api/boards/../../pyproject.toml", None, {}, 404),
        ("GET", "/page/page.js", None, {}, 404),
        ("GET", "/favicon.ico", None, {}, 404),
        ("DELETE", "/", None, {}, 405),
        ("DELETE", "/gone", None, {}, 404),
        ("BREW", "/", None, {}, 501),
    ],
)
def test_what_is_not_for_the_page_is_refused(
    server: Server, method: str, path: str, body: object, headers: dict[str, str], status: int
) -> None:
    answer = request(server, method, path, body, headers)
    assert answer.status == status
    if status != 200:
        assert answer.json["error"]
        assert answer.body.count(b"\n") == 0


def test_a_tile_that_is_not_there_or_not_finished(server: Server) -> None:
    board = ask(server, kind="draw", prompt="a red fox", count=1)
    done(server, board)
    assert request(server, "GET", f"/api/boards/{board}/1.png").status == 404
    board = ask(server, kind="draw", prompt="a red fox", count=24, steps=500)
    assert request(server, "GET", f"/api/boards/{board}/23.png").status == 404
    assert request(server, "GET", f"/api/boards/{board}/23").status == 400
    assert request(server, "POST", f"/api/boards/{board}/23/keep", {}).status == 400


def test_the_end_waits_for_nobody(model: Path, tmp_path: Path) -> None:
    """Idle connections, an open stream and a picture half way do not hold the server up; `serving` checks threads."""
    with serving(model, tmp_path) as server:
        idle = [socket.create_connection(end(server)) for _ in range(3)]
        ask(server, kind="draw", prompt="a red fox", count=24, steps=500, width_px=64)
        next(stream := events(server))
    assert len(list(stream)) < 1000  # it ends
    for one in idle:
        assert one.recv(1) == b""
        one.close()


def test_more_connections_than_a_browser_opens_are_turned_away(server: Server) -> None:
    idle = [socket.create_connection(end(server)) for _ in range(64)]
    try:
        with pytest.raises((ConnectionError, http.client.BadStatusLine)):
            request(server, "GET", "/api/about")
    finally:
        for one in idle:
            one.close()


def test_a_port_that_is_taken_and_a_folder_that_cannot_be_written(server: Server, model: Path, tmp_path: Path) -> None:
    setup = Setup(model=model)
    painter, port = artist(setup), server.server_address[1]
    with pytest.raises(ValueError, match="use another --port"):
        with listening(painter, setup, tmp_path, port=port):
            pass
    with pytest.raises(ValueError, match="use another --port"):
        with listening(painter, setup, tmp_path, port=70000):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to"):
        with listening(painter, setup, tmp_path / "file"):
            pass


def test_the_address_is_one_that_a_browser_takes(model: Path, tmp_path: Path) -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("localhost", "127.0.0.1")):
        with serving(model, tmp_path, host) as server:
            assert address(server) == f"http://{shown}:{server.server_address[1]}/"
            assert request(server, "GET", "/", headers={"Host": f"{host}:80"}).status == 200


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import fake_load
from krea_model import bundle
bundle.load = fake_load
from krea_sampler.compose import Setup, artist
from krea_sampler.serve import address, listening, serve
setup = Setup(model=Path(sys.argv[2]))
with listening(artist(setup), setup, Path(sys.argv[3]), port=0) as server:
    print(address(server), flush=True)
    serve(server, print)
print("ended")
"""


@pytest.mark.slow  # a process of its own that imports everything
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent as a signal")
def test_ctrl_c_ends_the_process_in_order(model: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-W", "error", "-c", SCRIPT, str(Path(__file__).parent), str(model), str(tmp_path / "out")]
    # a shell that starts things in the background may have told them to ignore Ctrl-C
    allow: Callable[[], object] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=allow
    ) as process:
        assert process.stdout is not None
        place = process.stdout.readline().strip()
        assert place.startswith("http://127.0.0.1:")
        host, port = place[7:-1].split(":")
        with socket.create_connection((host, int(port))) as asking, socket.create_connection((host, int(port))):
            asking.sendall(b"HEAD / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert asking.recv(12) == b"HTTP/1.0 200"  # it is past its beginning, where Ctrl-C ends it without a word
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines() == ["stopping after the current step; Ctrl-C again leaves at once", "ended"]
