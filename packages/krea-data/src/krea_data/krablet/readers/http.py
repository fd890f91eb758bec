"""The verbs of a reader over HTTP: `POST /v1/<verb>` with a JSON object of arguments, for any language.

    curl -H "Authorization: Bearer $TOKEN" -d '{"id": "noto/1f34e"}' https://reader:8443/v1/get

answers `{"value": ...}`. A scan answers with rows as JSON, one a line, or as an Arrow stream if `Accept` asks for
`application/vnd.apache.arrow.stream`; the last line is {"end": {"rows", "missing"}} (see `arrow` for its batch), and a
stream without it was cut off. Errors are {"error": {"kind", "message"}} with the status

    401 no or a wrong token   403 scope   404 no such verb or thing   413 too large   422 bad argument
    429 busy, see Retry-After   503 a shard is down or the server is stopping   504 took too long

/health, /ready and /metrics (for Prometheus) need no token: they tell no data.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

try:
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    raise ImportError("a reader over HTTP needs starlette and prometheus-client; install krea-data[serve]") from error

from krea_data.krablet.errors import ServerError, ShardDown
from krea_data.krablet.readers.arrow import MEDIA_TYPE, readable
from krea_data.krablet.readers.measured import Measured
from krea_data.krablet.readers.plain import plain_cells, readable_row
from krea_data.krablet.readers.pools import TooLarge, TooSlow
from krea_data.krablet.readers.scanning import Scan
from krea_data.krablet.readers.service import ReaderService
from krea_data.krablet.rpc.errors import Busy, Refused
from krea_data.krablet.rpc.tokens import SCOPES, Caller, Tokens

__all__ = ["LINES", "app"]

LINES = "application/x-ndjson"
BODY_BYTES = 64 << 20
_LOG = logging.getLogger(__name__)
_EVERYBODY = Caller("local", SCOPES)


class _Unknown(Refused):
    """There is no token, or one that nobody has: 401, where a lacking scope is 403."""


def app(
    service: ReaderService, *, tokens: Tokens | None, measured: Measured, body_bytes: int = BODY_BYTES
) -> Starlette:
    """The application; without tokens everybody who can reach it may do everything."""
    web = _Web(service, tokens, measured, body_bytes)
    return Starlette(
        routes=[
            Route("/v1/{verb}", web.verb, methods=["POST"]),
            Route("/health", web.health),
            Route("/ready", web.ready),
            Route("/metrics", web.metrics),
        ]
    )


class _Web:
    """The handlers."""

    def __init__(self, service: ReaderService, tokens: Tokens | None, measured: Measured, body_bytes: int) -> None:
        self._service, self._tokens, self._measured, self._body_bytes = service, tokens, measured, body_bytes

    async def verb(self, request: Request) -> Response:
        """Do a verb."""
        name = request.path_params["verb"]
        try:
            caller = self._caller(request)
            scope = self._service.scopes.get(name)
            if scope is None:
                raise LookupError(f"there is no verb {name!r}; there are {', '.join(sorted(self._service.scopes))}")
            if not caller.may(scope):
                raise Refused(f"{name} needs the scope {scope!r}, which this token lacks")
            args = await self._args(request)
            if name == "scan":
                return await self._scan(request, args, caller)
            value = await self._measured.call(self._service, name, args, caller)
            return JSONResponse({"value": _readable(name, value, args)})
        except Exception as error:  # noqa: BLE001 - the client is told, the server goes on
            return _failure(name, error)

    async def health(self, _: Request) -> Response:
        """Whether this process runs."""
        return JSONResponse({"ok": True})

    async def ready(self, _: Request) -> Response:
        """Whether it is any use to send requests here: it is not stopping, and a shard answers."""
        shards = await self._service.reads.fleet.status()
        fine = not self._measured.stopping and any(shard["up"] for shard in shards)
        down = [shard["shard"] for shard in shards if not shard["up"]]
        return JSONResponse({"ready": fine, "down": down}, 200 if fine else 503)

    async def metrics(self, _: Request) -> Response:
        """Counts and times by verb, and how the pools stand."""
        self._measured.look(self._service.reads)
        return Response(generate_latest(self._measured.registry), media_type=CONTENT_TYPE_LATEST)

    def _caller(self, request: Request) -> Caller:
        if self._tokens is None:
            return _EVERYBODY
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        caller = self._tokens.check(secret.strip()) if kind.lower() == "bearer" and secret else None
        if caller is None:
            raise _Unknown("this needs a token that is known here, as in: Authorization: Bearer TOKEN")
        return caller

    async def _args(self, request: Request) -> dict[str, Any]:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._body_bytes:
                raise TooLarge(f"the body is above {self._body_bytes} bytes; send it in parts")
        try:
            args = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is no JSON: {error}") from error
        if not isinstance(args, dict):
            raise ValueError("the body is no JSON object of arguments")
        return args

    async def _scan(self, request: Request, args: dict[str, Any], caller: Caller) -> Response:
        arrow = MEDIA_TYPE in request.headers.get("accept", "")
        if arrow:
            pieces: AsyncIterator[bytes] = await self._measured.call(self._service, "scan", args, caller)
        else:
            scan: Scan = await self._measured.call(self._service, "scan", args, caller, plain=True)
            pieces = _lines(scan, args.get("columns") is None)
        first = await anext(pieces)  # what is wrong from the start gets its own status
        return StreamingResponse(_guarded(first, pieces, arrow), media_type=MEDIA_TYPE if arrow else LINES)


async def _lines(scan: Scan, whole: bool) -> AsyncIterator[bytes]:
    """Rows as lines of JSON, a page at a time, then the end."""
    tasks = [column.name.removesuffix(".value") for column in scan.columns[3::3]] if whole else []
    async for page in scan.pages():
        rows = (readable_row(plain_cells(tasks, cells)) if whole else readable(scan.columns, cells) for cells in page)
        yield b"".join(_line(row) for row in rows)
    yield _line({"end": {"rows": scan.rows, "missing": scan.missing}})


async def _guarded(first: bytes, rest: AsyncIterator[bytes], arrow: bool) -> AsyncIterator[bytes]:
    """The pieces; where reading fails in the middle, lines say why, and an Arrow stream ends without its end."""
    yield first
    try:
        async for piece in rest:
            yield piece
    except Exception as error:  # noqa: BLE001 - the status has been sent, this is all that can be said
        _, said, _ = _described("scan", error)
        if not arrow:
            yield _line(said)


def _readable(verb: str, value: Any, args: Mapping[str, Any]) -> Any:
    """The answer with rows as objects."""
    if value is None:
        return None
    if verb == "get":
        return readable_row(value)
    if verb == "get_many" and args.get("columns") is None:
        return {**value, "rows": [readable_row(row) for row in value["rows"]]}
    if verb == "get_records":
        return [json.loads(text) for text in value]
    if verb == "scan_records":
        return {**value, "rows": [json.loads(text) for text in value["rows"]]}
    if verb == "claim":
        return [
            {"id": row_id, "token": token, "attempt": attempt, "row": readable_row(row)}
            for row_id, token, attempt, row in value
        ]
    return value


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _failure(verb: str, error: Exception) -> Response:
    status, said, headers = _described(verb, error)
    return JSONResponse(said, status, headers)


def _described(verb: str, error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error; what is not meant for clients stays in the log."""
    kinds: tuple[tuple[type[Exception], int, dict[str, str]], ...] = (
        (_Unknown, 401, {"WWW-Authenticate": "Bearer"}),
        (Refused, 403, {}),
        (TooLarge, 413, {}),
        (TooSlow, 504, {}),
        (ShardDown, 503, {"Retry-After": "1"}),
        (ServerError, 503, {"Retry-After": "1"}),
        (LookupError, 404, {}),
        (ValueError, 422, {}),
    )
    if isinstance(error, Busy):
        return 429, _said("Busy", error), {"Retry-After": str(max(1, round(error.retry_after_s)))}
    for kind, status, headers in kinds:
        if isinstance(error, kind):
            return status, _said(kind.__name__.lstrip("_"), error), headers
    _LOG.error("%s failed", verb, exc_info=error)
    return 500, _said(type(error).__name__, "the server failed; its log says more"), {}


def _said(kind: str, message: object) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": str(message)}}
