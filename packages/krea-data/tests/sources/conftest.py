"""Pictures, sources made of lists, and a server of pictures that misbehaves on request."""

import io
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from krea_data.memory import MemoryTable
from krea_data.sources import Content, Entry
from krea_data.testing import MemoryBlobs
from PIL import Image


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def table() -> MemoryTable:
    return MemoryTable()


@pytest.fixture
def png() -> Callable[..., bytes]:
    """A function that makes a small picture that differs by its number."""

    def make(number: int = 0, form: str = "PNG") -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (40, 40), (number % 256, number // 256, 7)).save(file, form)
        return file.getvalue()

    return make


class ListSource:
    """A source of (key, bytes or what reading them raises); counts what was read."""

    def __init__(self, items: list[tuple[str, Any]], name: str = "list") -> None:
        self.name, self.items = name, items
        self.read: list[str] = []

    def total(self) -> int:
        return len(self.items)

    def entries(self) -> Iterator[Entry]:
        for key, data in self.items:
            yield Entry(
                key=key,
                meta=lambda: {"source": self.name, "licence": "unknown"},
                read=lambda k=key, d=data: self._read(k, d),
            )

    def _read(self, key: str, data: Any) -> Content:
        self.read.append(key)
        if isinstance(data, BaseException):
            raise data
        return Content(data=data, meta={"bytes_read": len(data)})


@pytest.fixture
def listed() -> type[ListSource]:
    return ListSource


class Server:
    """Answers by path; `answers` maps one to (status, headers, body) or to a function that answers by itself."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.heads: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.heads.append({name.lower(): value for name, value in self.headers.items()})
                answer = outer.answers.get(self.path, (404, {}, b"none"))
                if callable(answer):
                    answer = answer(self)
                if answer is None:
                    return
                status, headers, body = answer  # type: ignore[misc]
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    for one in value if isinstance(value, list) else [value]:
                        self.send_header(name, one)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()
