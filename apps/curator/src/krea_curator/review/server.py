"""The page as a server on this machine. Its address holds a key, so that other users of the machine cannot decide."""

import json
import secrets
from collections.abc import Callable, Sequence
from importlib.resources import files
from threading import Lock
from typing import Any

import uvicorn
from krea_data.interfaces import Blobs, Table
from krea_data.limits.stages import Stage
from krea_data.rows import Row
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from krea_curator.review.decisions import decide
from krea_curator.review.shelves import Shelf, shelves, shown

__all__ = ["Review", "app", "serve"]

_PAGE_ROWS = 60
_FILES = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "main.js": ("main.js", "text/javascript"),
}
_TYPES = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"RIFF", "image/webp"), (b"GIF8", "image/gif"))


class Review:
    """The rows as they were when they were last read, and the decisions since."""

    def __init__(self, table: Table, blobs: Blobs, stages: Sequence[Stage], last: str) -> None:
        self.table, self.blobs, self.stages, self.last = table, blobs, stages, last
        self._lock = Lock()
        self.read()

    def read(self) -> None:
        """Look at the table again."""
        rows = {row.id: row for row in self.table.scan()}
        found = {shelf.name: shelf for shelf in shelves(list(rows.values()), self.stages, self.last)}
        with self._lock:
            self.rows, self.shelves = rows, found

    def page(self, name: str, start: int) -> dict[str, Any]:
        """Rows of a shelf from a place on; LookupError for a shelf that is not there."""
        if name not in self.shelves:
            raise LookupError(f"there is no shelf {name!r} any more; reload the page")
        shelf: Shelf = self.shelves[name]
        ids = shelf.ids[start : start + _PAGE_ROWS]
        found = [shown(self.rows[row_id]) for row_id in ids if row_id in self.rows]
        for one in found:
            beside = self.rows.get(str(one["beside"]))
            one["beside"] = None if beside is None else {"id": beside.id, "blob": beside.blob}
        return {"rows": found, "total": len(shelf.ids), "next": start + len(ids)}

    def decide(self, ids: Sequence[str], *, keep: bool, note: str) -> list[dict[str, Any]]:
        """Store a decision and return the rows as they are now; LookupError for an id that is not there."""
        with self._lock:
            unknown = [row_id for row_id in ids if row_id not in self.rows]
            if unknown:
                raise LookupError(f"there is no row {unknown[0]!r}; reload the page")
            rows: list[Row] = [self.rows[row_id] for row_id in ids]
            fresh = decide(self.table, rows, keep=keep, note=note)
            self.rows |= {row.id: row for row in fresh}
            return [shown(row) for row in fresh]


def app(review: Review, key: str) -> Starlette:
    """Everything lies below /<key>/."""

    async def file(request: Request) -> Response:
        name, kind = _FILES[request.url.path.rpartition("/")[2]]
        text = files("krea_curator.review").joinpath("page", name).read_text("utf-8")
        return Response(text, media_type=kind, headers={"Cache-Control": "no-store"})

    async def listed(_: Request) -> Response:
        await run_in_threadpool(review.read)
        return JSONResponse([{"name": s.name, "title": s.title, "rows": len(s.ids)} for s in review.shelves.values()])

    async def page(request: Request) -> Response:
        start = int(request.query_params.get("start", "0"))
        return JSONResponse(review.page(request.query_params.get("shelf", ""), max(0, start)))

    async def picture(request: Request) -> Response:
        try:
            data = await run_in_threadpool(review.blobs.get, request.path_params["blob"])
        except (KeyError, ValueError):
            return Response(status_code=404)
        kind = next((kind for head, kind in _TYPES if data.startswith(head)), "application/octet-stream")
        headers = {"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"}
        return Response(data, media_type=kind, headers=headers)

    async def verdict(request: Request) -> Response:
        ids, keep, note = _asked(await request.body())
        changed = await run_in_threadpool(lambda: review.decide(ids, keep=keep, note=note))
        return JSONResponse({"rows": changed})

    routes = [
        Route("/", file),
        Route("/shelves", listed),
        Route("/rows", page),
        Route("/picture/{blob}", picture),
        Route("/decide", verdict, methods=["POST"]),
        *(Route(f"/{name}", file, name=name) for name in _FILES if name),
    ]
    return Starlette(routes=[Mount(f"/{key}", routes=routes)], exception_handlers={ValueError: _bad, LookupError: _bad})


def serve(review: Review, *, port: int = 0, ready: Callable[[str], None] = print) -> None:
    """Serve the page on this machine until Ctrl-C; `ready` is told its address. OSError if the port is taken."""
    key = secrets.token_urlsafe(16)
    config = uvicorn.Config(app(review, key), host="127.0.0.1", port=port, log_level="warning", access_log=False)
    listener = config.bind_socket()
    ready(f"http://127.0.0.1:{listener.getsockname()[1]}/{key}/")
    uvicorn.Server(config).run(sockets=[listener])


def _asked(body: bytes) -> tuple[list[str], bool, str]:
    """Ids, whether to keep them, and a note, or ValueError."""
    try:
        given = json.loads(body)
        ids, keep, note = given["ids"], given["keep"], given.get("note", "")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("a decision is {ids, keep, note}") from error
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids) or not isinstance(keep, bool):
        raise ValueError("a decision has a list of ids, and true or false for keep")
    if not isinstance(note, str) or len(note) > 1000 or "\0" in note:
        raise ValueError("a note is a text of up to 1,000 characters")
    return ids, keep, note


async def _bad(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error.args[0] if error.args else error)}, status_code=400)
