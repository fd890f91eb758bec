"""One HTTP request and its answer: who may ask, what may be sent, and every refusal as a status with one sentence."""

import ipaddress
import json
import socket
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from krea_sampler.safety import Refused
from krea_sampler.serve.worker import UNFORESEEN

__all__ = ["Declined", "Replies"]

MAX_BODY_BYTES = 1 << 18
PATIENCE_S = 20.0  # for a request to arrive
LINGER_S = 2.0  # for the rest of a body that nobody reads
LINGER_BYTES = 1 << 24
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Declined(Exception):  # noqa: N818 - an answer, not a fault
    """A request that is not answered as asked: a status, a sentence for the page, further headers."""

    def __init__(self, status: HTTPStatus, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}


class Replies(BaseHTTPRequestHandler, ABC):
    """Answers a request by what `at` finds for its address. HEAD is GET without the body."""

    timeout = PATIENCE_S
    server_version, sys_version = "krea-sample", ""
    default_request_version = "HTTP/1.0"  # of a line that is no request: with 0.9 the answer would have no status
    names: frozenset[str] = frozenset()
    """Names of this machine besides localhost and IP addresses."""

    @abstractmethod
    def at(self, path: str) -> Mapping[str, Callable[[], None]]:
        """What answers at an address, by GET or POST; empty where there is nothing."""

    def do_GET(self) -> None:
        """Answer, whatever the method is."""
        self._has_body = bool(self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0")
        try:
            self._reply()
        except Declined as declined:
            self.send_json({"error": str(declined)}, declined.status, declined.headers)
        except (ValueError, Refused) as error:
            self.send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (ConnectionError, TimeoutError):
            raise  # nobody is left to tell
        except OSError as error:
            self.send_json({"error": f"the disk refused: {error}"}, HTTPStatus.INTERNAL_SERVER_ERROR)
        except (RuntimeError, MemoryError) as error:  # of a classifier that fails, too
            self.send_json({"error": str(error) or "not enough memory"}, HTTPStatus.INTERNAL_SERVER_ERROR)
        except UNFORESEEN as error:
            traceback.print_exception(error)
            sentence = "the server broke down over this; where it was started it says why"
            self.send_json({"error": sentence}, HTTPStatus.INTERNAL_SERVER_ERROR)
        self._linger()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the parser of requests refuses, in the form of every other refusal."""
        self.close_connection = True
        status = HTTPStatus(code)
        self.send_json({"error": message or explain or status.phrase}, status)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page shows what happens."""

    def body(self) -> object:
        """The JSON that was sent."""
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Declined(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, with Content-Type: application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Declined(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise Declined(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {MAX_BODY_BYTES} bytes")
        try:
            sent = self.rfile.read(int(length))
        except TimeoutError:
            raise Declined(HTTPStatus.REQUEST_TIMEOUT, f"the {length} bytes did not arrive; send them again") from None
        self._has_body = False
        try:
            return json.loads(sent)
        except (ValueError, RecursionError) as error:
            raise ValueError("what was sent is not JSON") from error

    def send_json(
        self, value: object, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with JSON, in ASCII: what is refused may hold halves of characters, which have no bytes."""
        self.send_bytes(json.dumps(value).encode(), "application/json", headers, status)

    def send_bytes(
        self,
        body: bytes,
        kind: str,
        headers: Mapping[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        """Answer with these bytes, of this media type."""
        self.send_head(status, kind, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_head(self, status: HTTPStatus, kind: str, headers: Mapping[str, str]) -> None:
        """The status and the headers alone."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Cache-Control": "no-store", **HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _reply(self) -> None:
        self._check_sender()
        found = self.at(urlsplit(self.path).path)
        if not found:
            raise Declined(HTTPStatus.NOT_FOUND, "there is nothing at this address; open the page at /")
        method = "GET" if self.command == "HEAD" else self.command
        if method not in found:
            allowed = ", ".join("GET, HEAD" if one == "GET" else one for one in found)
            sentence = f"{self.command} is not for this address; use {allowed}"
            raise Declined(HTTPStatus.METHOD_NOT_ALLOWED, sentence, {"Allow": allowed})
        found[method]()

    def _check_sender(self) -> None:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not _is_ours(host, self.names):
            raise Declined(
                HTTPStatus.FORBIDDEN, f"this server does not go by the name {host[:80]!r}; use its IP address or --host"
            )
        foreign = origin is not None and urlsplit(origin).netloc != host
        followed = self.headers.get("Sec-Fetch-Mode") == "navigate" and self.path == "/"  # a link to the page is fine
        if foreign or not (followed or self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")):
            raise Declined(HTTPStatus.FORBIDDEN, "another site may not use this server; open its own page")

    def _linger(self) -> None:
        """Let a body that nobody reads arrive: closing before it does resets the connection, and the answer is lost."""
        if not self._has_body:
            return
        end, room = time.monotonic() + LINGER_S, LINGER_BYTES
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_S)
            while room > 0 and time.monotonic() < end and (read := self.rfile.read1(1 << 16)):
                room -= len(read)
        except OSError:  # it is gone
            return


def _is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is an IP address, localhost or a given name: any other may be a foreign site's."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        if name in names or name == "localhost":
            return True
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
