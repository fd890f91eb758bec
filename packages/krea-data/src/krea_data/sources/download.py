"""One picture over HTTP: with a time limit, a size limit, several tries, and respect for what its server asks."""

import ipaddress
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

try:
    import urllib3
    from urllib3.exceptions import (
        HTTPError,
        LocationValueError,
        NewConnectionError,
        ProtocolError,
        SSLError,
        TimeoutError,
    )
except ImportError as error:
    raise ImportError("downloading needs urllib3; install krea-data[sources]") from error

from krea_data.sources.entries import Content, Unavailable

__all__ = ["Downloads", "download", "pool", "refused"]

_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 421, 425, 429)  # and all of 500
_LONGEST_PAUSE_S = 30.0
_PIECE = 64 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Downloads:
    """The rules of downloading; `refusals` are the words of X-Robots-Tag that are obeyed."""

    tries: int = 3  # of what may pass, such as time-outs and 503
    timeout_s: float = 20.0  # of one try as a whole
    connect_s: float = 10.0
    pause_s: float = 0.5  # before the second try, doubled for each further one
    bytes_limit: int = 64 << 20
    redirects: int = 5
    refusals: tuple[str, ...] = ("noai", "noimageai")
    agent: str = "krea-data"
    private: bool = False  # whether addresses inside of a network may be asked

    def __post_init__(self) -> None:
        if self.tries < 1 or self.bytes_limit < 1 or min(self.timeout_s, self.connect_s) <= 0 or self.pause_s < 0:
            raise ValueError(
                f"tries {self.tries} and bytes_limit {self.bytes_limit} must be at least 1, timeout_s {self.timeout_s} "
                f"and connect_s {self.connect_s} more than 0, pause_s {self.pause_s} not below"
            )


class _Retry(Exception):  # noqa: N818
    """What went wrong in one try and may pass; `pause_s` is what the server asks for."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


def pool(connections: int) -> "urllib3.PoolManager":
    """Connections that are kept between downloads, so many to one host."""
    return urllib3.PoolManager(num_pools=64, maxsize=max(1, connections), block=False)


def refused(values: Iterable[str], words: Iterable[str], agent: str) -> str | None:
    """The first of the words that X-Robots-Tag headers state for everybody or for this agent, or None."""
    wanted = {word.lower() for word in words}
    for value in values:
        for_us = True
        for part in value.lower().split(","):
            who, colon, rest = part.partition(":")
            if colon and who.strip() not in ("unavailable_after", "max-snippet", "max-image-preview"):
                for_us = who.strip() in (agent.lower(), "*")
                part = rest
            if for_us and part.strip() in wanted:
                return part.strip()
    return None


def download(manager: "urllib3.PoolManager", url: str, rules: Downloads) -> Content:
    """The bytes behind an address, or `Unavailable` with the errors of all tries."""
    said: list[str] = []
    for number in range(rules.tries):
        try:
            return _once(manager, url, rules)
        except _Retry as error:
            said.append(str(error))
            if number + 1 < rules.tries:
                time.sleep(min(max(error.pause_s, rules.pause_s * 2**number), _LONGEST_PAUSE_S))
    raise Unavailable(f"{rules.tries} tries: {'; '.join(said)}" if len(said) > 1 else said[0], passing=True)


def _once(manager: "urllib3.PoolManager", url: str, rules: Downloads) -> Content:
    end = time.monotonic() + rules.timeout_s
    asked = url
    for _ in range(rules.redirects + 1):
        _check(asked, rules)
        response = _asked(manager, asked, rules, end)
        try:
            if response.status in _REDIRECTS and (place := response.headers.get("Location")):
                asked = urljoin(asked, place)
                continue
            return _answer(response, asked, rules, end) if asked == url else _moved(response, asked, rules, end)
        finally:
            response.close()
    raise Unavailable(f"more than {rules.redirects} redirects, the last one to {asked[:300]}")


def _moved(response: "urllib3.BaseHTTPResponse", asked: str, rules: Downloads, end: float) -> Content:
    content = _answer(response, asked, rules, end)
    return Content(data=content.data, meta={**content.meta, "moved_to": asked[:2000]})


def _check(url: str, rules: Downloads) -> None:
    """`Unavailable` for what is no address of a page that anybody may ask for."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Unavailable(f"this is no URL ({error})") from error
    if parts.scheme not in ("http", "https") or not host:
        raise Unavailable("this is no http or https URL")
    if rules.private:
        return
    try:
        found = socket.getaddrinfo(host, port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Retry(f"the host {host[:100]} is not found ({error})") from error
    for *_, address in found:
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            raise Unavailable(f"the host {host[:100]} is {address[0]}, an address inside of a network")


def _asked(manager: "urllib3.PoolManager", url: str, rules: Downloads, end: float) -> "urllib3.BaseHTTPResponse":
    left = max(0.01, end - time.monotonic())
    try:
        return manager.request(
            "GET",
            url,
            headers={"User-Agent": rules.agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            timeout=urllib3.Timeout(connect=min(rules.connect_s, left), read=left),
            redirect=False,
            retries=False,
            preload_content=False,
        )
    except (LocationValueError, UnicodeError, ValueError) as error:
        raise Unavailable(f"this is no URL ({error})"[:300]) from error
    except (HTTPError, OSError) as error:
        raise _Retry(_words(error)) from error


def _answer(response: "urllib3.BaseHTTPResponse", url: str, rules: Downloads, end: float) -> Content:
    status = response.status
    if status in _PASSING or status >= 500:
        raise _Retry(f"HTTP {status}", _wished(response.headers.get("Retry-After")))
    meta: dict[str, Any] = {"http_status": status}
    if kind := response.headers.get("Content-Type"):
        meta["content_type"] = kind[:200]
    if status != 200:
        raise Unavailable(f"HTTP {status}", meta=meta)
    tags = response.headers.getlist("X-Robots-Tag")
    if word := refused(tags, rules.refusals, rules.agent):
        raise Unavailable(f"its server asks not to use it (X-Robots-Tag: {word})", meta=meta)
    stated = response.headers.get("Content-Length", "")
    if stated.isdecimal() and int(stated) > rules.bytes_limit:
        raise Unavailable(f"it has {stated} bytes, which is over the limit of {rules.bytes_limit}", meta=meta)
    return Content(data=_body(response, rules, end), meta=meta)


def _body(response: "urllib3.BaseHTTPResponse", rules: Downloads, end: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := response.read1(_PIECE, decode_content=True):
            pieces.append(piece)
            size += len(piece)
            if size > rules.bytes_limit:
                raise Unavailable(f"it has more than {rules.bytes_limit} bytes, which is the limit")
            if time.monotonic() > end:
                raise _Retry(f"{size} bytes in {rules.timeout_s:g} s and no end")
    except (HTTPError, OSError) as error:
        raise _Retry(f"after {size} bytes: {_words(error)}") from error
    return b"".join(pieces)


def _wished(text: str | None) -> float:
    return float(text) if text is not None and re.fullmatch(r"\d{1,6}", text) else 0.0


def _words(error: Exception) -> str:
    """What went wrong, without the addresses of objects in memory."""
    if isinstance(error, TimeoutError) and not isinstance(error, NewConnectionError):
        return "timed out"
    if isinstance(error, SSLError):
        return "its certificate or its encryption is wrong"
    if isinstance(error, ProtocolError):
        return "the connection was cut"
    said = re.sub(r"<[^>]*>:? ?", "", str(error))
    return f"no connection ({said[:200]})"
