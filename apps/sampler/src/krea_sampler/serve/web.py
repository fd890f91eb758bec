"""HTTP for one person's browser: a page, pictures, a few questions in JSON, and a stream of what changes.

    GET  /  /page.js  /page.css           the page, all of it from this package
    GET  /api/about                       the model, its usual settings, limits
    GET  /api/events                      server-sent events: boards and tiles as they change
    GET  /api/boards/ID/N.png             a finished picture with its parameters; ?download names it as a file
    GET  /api/boards/ID/N                 its parameters and command, to be copied
    POST /api/boards                      ask for a board (see `asks`)
    POST /api/boards/ID/stop|resume|remove|restore
    POST /api/boards/ID/N/keep            save it in the folder of kept pictures

Only requests from the page itself are answered: the Host must be this machine's (so that no other site's name can be
pointed here), the Origin must be the Host, and what is posted must be JSON. No part of an address names a file.
"""

import ipaddress
import json
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

from krea_sampler.compose import Setup
from krea_sampler.safety import Refused
from krea_sampler.serve import asks, kept, view
from krea_sampler.serve.boards import Board, Boards, Tile
from krea_sampler.serve.engine import Engine

__all__ = ["Server", "Studio"]

MAX_BODY_BYTES = 1 << 18
MAX_CONNECTIONS = 64
PATIENCE_S = 20.0  # for a request to arrive
BEAT_S = 10.0  # a stream says that it is alive
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
BOARD = re.compile(r"/api/boards/([0-9a-z]{1,16})/(stop|resume|remove|restore)")
TILE = re.compile(r"/api/boards/([0-9a-z]{1,16})/([0-9]{1,4})(\.png|/keep|)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Studio:
    """What requests are answered from. `names` are further host names of this machine."""

    engine: Engine
    setup: Setup
    boards: Boards
    out: Path
    names: frozenset[str] = frozenset()


class Declined(Exception):  # noqa: N818 - an answer, not a fault
    """A request that is not answered as asked: a status, and a sentence for the page."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Server(ThreadingHTTPServer):
    """Listens from the moment it is made; `close` ends every connection and waits for their threads."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], studio: Studio) -> None:
        self.studio = studio
        self.page = {path: _asset(name) for path, (name, _) in PAGE.items()}
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking a name server what this machine is called, which can take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse connections beyond a number that no person's browser needs."""
        with self._lock:
            return len(self._open) < MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, and remember the connection."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget and end a connection."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """End everything. `serve_forever` must have returned, or never been called."""
        self.studio.boards.close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # it ended by itself
                    continue
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_S
    server_version, sys_version = "krea-sample", ""

    @property
    def _studio(self) -> Studio:
        return cast(Server, self.server).studio

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page shows what happens."""

    def _answer(self, how: Callable[[str], None]) -> None:
        try:
            self._check_sender()
            how(urlsplit(self.path).path)
        except Declined as declined:
            self._json({"error": str(declined)}, declined.status)
        except (ValueError, Refused) as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise  # nobody is left to tell
            self._json({"error": f"the disk refused: {error}"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check_sender(self) -> None:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not _is_ours(host, self._studio.names):
            raise Declined(
                HTTPStatus.FORBIDDEN, f"this server does not go by the name {host[:80]!r}; use its IP address or --host"
            )
        foreign = origin is not None and urlsplit(origin).netloc != host
        followed = self.headers.get("Sec-Fetch-Mode") == "navigate" and self.path == "/"  # a link to the page is fine
        if foreign or not (followed or self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")):
            raise Declined(HTTPStatus.FORBIDDEN, "another site may not use this server; open its own page")

    def _get(self, path: str) -> None:
        server = cast(Server, self.server)
        if path in PAGE:
            return self._send(server.page[path], f"{PAGE[path][1]}; charset=utf-8")
        if path == "/api/about":
            return self._json(view.about(self._studio.engine, self._studio.setup))
        if path == "/api/events":
            return self._events()
        found = TILE.fullmatch(path)
        if not found or found[3] == "/keep":
            raise Declined(HTTPStatus.NOT_FOUND, "there is nothing at this address; open the page at /")
        _, tile = self._tile(found)
        if not found[3]:
            return self._json(view.details(tile, self._studio.setup))
        if tile.drawing is None:
            raise Declined(HTTPStatus.NOT_FOUND, "this picture is not finished")
        name = _header_name(tile.drawing.stem) if urlsplit(self.path).query == "download" else ""
        headers = {"Cache-Control": "private, max-age=86400, immutable"}  # a finished picture stays what it is
        self._send(tile.png, "image/png", headers | ({"Content-Disposition": name} if name else {}))

    def _post(self, path: str) -> None:
        body, studio = self._body(), self._studio
        if path == "/api/boards":
            board = asks.board(body, studio.engine, studio.boards)
            words = {text for tile in board.tiles for text in (*tile.mixture.prompts, tile.settings.negative)}
            studio.engine.check(sorted(words))
            studio.boards.add(board)
            return self._json({"id": board.id})
        on_board, on_tile = BOARD.fullmatch(path), TILE.fullmatch(path)
        if on_board:
            board = self._board(on_board[1])
            if on_board[2] in ("stop", "resume"):
                (studio.boards.stop if on_board[2] == "stop" else studio.boards.resume)(board)
            else:
                studio.boards.remove(board, on_board[2] == "remove")
            return self._json({"id": board.id})
        if not on_tile or on_tile[3] != "/keep":
            raise Declined(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        _, tile = self._tile(on_tile)
        name = kept.keep(tile, studio.out)
        if name != tile.kept:
            studio.boards.mark_kept(tile, name)
        self._json({"kept": name})

    def _events(self) -> None:
        boards = self._studio.boards
        run, _, number = self.headers.get("Last-Event-ID", "").partition("-")
        after = int(number) if run == boards.run and number.isascii() and number.isdigit() else 0
        self._head(HTTPStatus.OK, "text/event-stream", {})
        before = -1
        while (found := boards.changes(after, 0 if before < 0 else BEAT_S)) is not None:
            after, order, changed = found
            if after != before:
                event = {"run": boards.run, "order": order, "boards": [view.board_view(b, t) for b, t in changed]}
                text = f"id: {boards.run}-{after}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
            else:
                text = ": nothing new\n\n"
            self.wfile.write(text.encode())
            before = after

    def _body(self) -> object:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Declined(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, with Content-Type: application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Declined(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise Declined(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {MAX_BODY_BYTES} bytes")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise ValueError("what was sent is not JSON") from error

    def _board(self, name: str) -> Board:
        try:
            return self._studio.boards.get(name)
        except KeyError:
            raise Declined(HTTPStatus.NOT_FOUND, "that board is gone from the server's memory") from None

    def _tile(self, found: re.Match[str]) -> tuple[Board, Tile]:
        board, number = self._board(found[1]), int(found[2])
        if number >= len(board.tiles):
            raise Declined(HTTPStatus.NOT_FOUND, f"that board has {len(board.tiles)} pictures")
        return board, board.tiles[number]

    def _json(self, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value, ensure_ascii=False).encode(), "application/json", status=status)

    def _send(
        self, body: bytes, kind: str, headers: dict[str, str] | None = None, status: HTTPStatus = HTTPStatus.OK
    ) -> None:
        self._head(status, kind, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Cache-Control": "no-store", **HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is an IP address, localhost or a given name: any other may be a foreign site's."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        if name in names or name == "localhost":
            return True
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _header_name(stem: str) -> str:
    return f"attachment; filename*=UTF-8''{quote(stem, safe='')}.png"


def _asset(name: str) -> bytes:
    return (resources.files("krea_sampler") / "serve" / "page" / name).read_bytes()
