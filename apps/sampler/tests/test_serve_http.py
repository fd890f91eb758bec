"""HTTP itself: methods, requests that are none, bodies that nobody wants, and the modules of the page."""

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin

import pytest
from krea_sampler.compose import Setup, artist
from krea_sampler.serve import listening, view
from krea_sampler.serve.engine import Engine
from krea_sampler.serve.replies import Replies
from krea_sampler.serve.server import Server
from krea_sampler.serve.web import page

JSON = {"Content-Type": "application/json"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    setup = Setup(model=model)
    with listening(artist(setup), setup, tmp_path / "out", port=0) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield found
        finally:
            found.shutdown()
            thread.join()


def request(
    server: Server, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def raw(server: Server, sent: bytes, finish: bool = True) -> tuple[str, bytes]:
    """The status line and the body that come back for these bytes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(sent)
        if finish:
            connection.shutdown(socket.SHUT_WR)
        got = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = got.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0].decode(), body


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", "GET, HEAD"),
        ("/main.js", "GET, HEAD"),
        ("/api/about", "GET, HEAD"),
        ("/api/boards", "POST"),
        ("/api/boards/none/stop", "POST"),
        ("/api/boards/none/0/keep", "POST"),
        ("/api/boards/none/0.png", "GET, HEAD"),
        ("/nothing/here", ""),
    ],
)
def test_a_method_is_answered_or_the_right_ones_are_named(server: Server, method: str, path: str, allowed: str) -> None:
    status, headers, body = request(server, method, path, b"{}" if method == "POST" else None, JSON)
    if not allowed:
        assert status == 404
    elif method in allowed.split(", "):
        assert status != 405
    else:
        assert (status, headers["Allow"]) == (405, allowed)
    assert (body == b"") == (method == "HEAD")
    if status >= 400 and method != "HEAD":
        assert json.loads(body)["error"]


@pytest.mark.parametrize("path", ["/", "/main.js", "/api/about", "/gone", "/api/boards/none/0.png"])
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    status, headers, body = request(server, "GET", path)
    again, same, nothing = request(server, "HEAD", path)
    assert (again, nothing) == (status, b"")
    assert {**same, "Date": ""} == {**headers, "Date": ""}
    assert int(same["Content-Length"]) == len(body)


def test_head_of_the_stream_ends(server: Server) -> None:
    status, headers, body = request(server, "HEAD", "/api/events")
    assert (status, headers["Content-Type"], body) == (200, "text/event-stream", b"")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n", 400),  # what a browser sends first to https://
        (b"POST /\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET /api/about HTTP/1.1\r\n\r\n", 403),
    ],
)
def test_what_is_no_request_gets_a_status_and_a_sentence(
    server: Server, capfd: pytest.CaptureFixture[str], sent: bytes, status: int
) -> None:
    line, body = raw(server, sent)
    assert line.startswith(f"HTTP/1.0 {status} ")
    assert json.loads(body)["error"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/api/boards", 413), ("PUT", "/api/about", 405)])
def test_the_answer_to_a_huge_body_arrives(server: Server, method: str, path: str, status: int) -> None:
    found, _, body = request(server, method, path, bytes(8_000_000), JSON)
    assert found == status
    assert json.loads(body)["error"]


def test_a_body_that_does_not_arrive_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replies, "timeout", 0.2)
    monkeypatch.setattr("krea_sampler.serve.replies.LINGER_S", 0.1)
    head = (
        b"POST /api/boards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    line, body = raw(server, head, finish=False)
    assert line.startswith("HTTP/1.0 408 ")
    assert "did not arrive" in json.loads(body)["error"]


DRAW = {"kind": "draw", "prompt": "a fox", "count": 1}


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"null",
        b"[]",
        b'"draw"',
        b"1" * 5000,
        b"\x00",
        b'{"kind": "\\ud800"}',
        json.dumps({"kind": "x" * 9000}).encode(),
        *(
            json.dumps(DRAW | {name: value}).encode()
            for name, value in (
                *(("kind", None), ("kind", ["draw"]), ("prompt", 3), ("prompt", "\ud800"), ("count", "1")),
                *(("count", 10**400), ("count", True), ("seed", 1.5), ("seed", [1]), ("steps", "3"), ("steps", 10**9)),
                *(("guidance", {}), ("width_px", 1e9), ("height_px", "16"), ("width_px", 100_000), ("negative", 1)),
                ("\ud800" * 5000, 1),
            )
        ),
        b'{"kind": "more", "of": {"board": [], "tile": {}}, "count": 2, "distance": 0.5}',
        b'{"kind": "repeat", "parameters": "[[[["}',
        b'{"kind": "repeat", "parameters": "{\\"model\\": 3}"}',
    ],
)
def test_what_is_no_ask_is_one_short_sentence(server: Server, capfd: pytest.CaptureFixture[str], sent: bytes) -> None:
    status, _, body = request(server, "POST", "/api/boards", sent, JSON)
    assert status == 400
    assert 10 < len(json.loads(body)["error"]) < 400
    assert capfd.readouterr().err == ""


def test_a_fault_is_told_where_the_server_was_started(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(view, "about", broken)
    status, _, body = request(server, "GET", "/api/about")
    assert (status, "a secret" in body.decode()) == (500, False)
    assert "a secret" in capfd.readouterr().err


def test_a_classifier_that_fails_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("the safety classifier failed; nothing is drawn")

    monkeypatch.setattr(Engine, "check", failing)
    status, _, body = request(server, "POST", "/api/boards", json.dumps(DRAW).encode(), JSON)
    assert (status, json.loads(body)["error"]) == (500, "the safety classifier failed; nothing is drawn")


def test_every_module_of_the_page_is_served_and_found() -> None:
    files = page()
    assert files["/"][1].startswith("text/html")
    (start,) = re.findall(r'<script type="module" src="([^"]+)"></script>', files["/"][0].decode())
    reached, waiting = set(), [urljoin("/", start)]
    while waiting:
        address = waiting.pop()
        content, kind = files[address]
        assert kind == "text/javascript; charset=utf-8"
        reached.add(address)
        found = [urljoin(address, name) for name in re.findall(r'from "(\./[^"]+)"', content.decode())]
        waiting += [one for one in found if one not in reached]
    assert reached == {address for address in files if PurePosixPath(address).suffix == ".js"}


def test_files_and_functions_of_the_page_are_short() -> None:
    for address, (content, _) in page().items():
        lines = content.decode().splitlines()
        assert len(lines) < 300, address
        begun = 0
        for number, line in enumerate(lines if address.endswith(".js") else []):
            if re.match(r"(export )?(async )?function |.* => \{$", line) and not line.startswith(" "):
                begun = number
            if line.startswith("}"):
                assert number - begun < 40, f"{address}: {lines[begun]}"
