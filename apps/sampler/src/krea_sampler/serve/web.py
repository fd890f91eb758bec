"""HTTP for one person's browser: a page, pictures, a few questions in JSON, and a stream of what changes.

    GET  /  /main.js  /page.css  ...      the page, all of it from this package
    GET  /api/about                       the model, its usual settings, limits
    GET  /api/events                      server-sent events: boards and tiles as they change
    GET  /api/boards/ID/N.png             a finished picture with its parameters; ?download names it as a file
    GET  /api/boards/ID/N                 its parameters and command, to be copied
    POST /api/boards                      ask for a board (see `asks`)
    POST /api/boards/ID/stop|resume|remove|restore
    POST /api/boards/ID/N/keep            save it in the folder of kept pictures

Where GET is answered HEAD is, too; other methods are 405. Only requests from the page itself are answered: the Host
must be this machine's (so that no other site's name can be pointed here), the Origin must be the Host, and what is
posted must be JSON. No part of an address names a file.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from importlib import resources
from pathlib import Path, PurePath
from typing import ClassVar
from urllib.parse import quote, urlsplit

from krea_sampler.compose import Setup
from krea_sampler.serve import asks, kept, view
from krea_sampler.serve.boards import Board, Boards, Tile
from krea_sampler.serve.engine import Engine
from krea_sampler.serve.replies import Declined, Replies

__all__ = ["Handler", "Studio", "page"]

BEAT_S = 10.0  # a stream says that it is alive
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
BOARD = re.compile(r"/api/boards/([0-9a-z]{1,16})/(stop|resume|remove|restore)")
TILE = re.compile(r"/api/boards/([0-9a-z]{1,16})/([0-9]{1,4})(\.png|/keep|)")


def page() -> dict[str, tuple[bytes, str]]:
    """Address -> content and media type of every file of the page; index.html is at /."""
    folder = resources.files("krea_sampler") / "serve" / "page"
    found = {}
    for file in folder.iterdir():
        kind = KINDS.get(PurePath(file.name).suffix)
        if kind is not None:
            address = "/" if file.name == "index.html" else f"/{file.name}"
            found[address] = file.read_bytes(), f"{kind}; charset=utf-8"
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Studio:
    """What requests are answered from. `names` are further host names of this machine."""

    engine: Engine
    setup: Setup
    boards: Boards
    out: Path
    names: frozenset[str] = frozenset()
    page: Mapping[str, tuple[bytes, str]] = field(default_factory=page)


class Handler(Replies):
    """What is at which address."""

    studio: ClassVar[Studio]

    @classmethod
    def of(cls, studio: Studio) -> type["Handler"]:
        """The class that answers from this studio."""
        return type("Handler", (cls,), {"studio": studio, "names": studio.names})

    def at(self, path: str) -> Mapping[str, Callable[[], None]]:
        """What answers at an address, by GET or POST; empty where there is nothing."""
        if path in self.studio.page:
            return {"GET": partial(self.send_bytes, *self.studio.page[path])}
        if path == "/api/about":
            return {"GET": lambda: self.send_json(view.about(self.studio.engine, self.studio.setup))}
        if path == "/api/events":
            return {"GET": self._events}
        if path == "/api/boards":
            return {"POST": self._ask}
        if found := BOARD.fullmatch(path):
            return {"POST": partial(self._change, found[1], found[2])}
        if found := TILE.fullmatch(path):
            board, number = found[1], int(found[2])
            if found[3] == "/keep":
                return {"POST": partial(self._keep, board, number)}
            return {"GET": partial(self._picture if found[3] else self._details, board, number)}
        return {}

    def _ask(self) -> None:
        studio = self.studio
        board = asks.board(self.body(), studio.engine, studio.boards)
        words = {text for tile in board.tiles for text in (*tile.mixture.prompts, tile.settings.negative)}
        studio.engine.check(sorted(words))
        studio.boards.add(board)
        self.send_json({"id": board.id})

    def _change(self, name: str, what: str) -> None:
        self.body()  # from the page alone: another site cannot send JSON
        board, boards = self._board(name), self.studio.boards
        if what in ("stop", "resume"):
            (boards.stop if what == "stop" else boards.resume)(board)
        else:
            boards.remove(board, what == "remove")
        self.send_json({"id": board.id})

    def _keep(self, board: str, number: int) -> None:
        self.body()
        tile = self._tile(board, number)
        name = kept.keep(tile, self.studio.out)
        if name != tile.kept:
            self.studio.boards.mark_kept(tile, name)
        self.send_json({"kept": name})

    def _details(self, board: str, number: int) -> None:
        self.send_json(view.details(self._tile(board, number), self.studio.setup))

    def _picture(self, board: str, number: int) -> None:
        tile = self._tile(board, number)
        if tile.parameters is None:
            raise Declined(HTTPStatus.NOT_FOUND, "this picture is not finished")
        headers = {"Cache-Control": "private, max-age=86400, immutable"}  # a finished picture stays what it is
        if urlsplit(self.path).query == "download":
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(tile.stem, safe='')}.png"
        self.send_bytes(tile.png, "image/png", headers)

    def _events(self) -> None:
        boards = self.studio.boards
        run, _, number = self.headers.get("Last-Event-ID", "").partition("-")
        after = int(number) if run == boards.run and number.isascii() and number.isdigit() else 0
        self.send_head(HTTPStatus.OK, "text/event-stream", {})
        if self.command == "HEAD":
            return
        before = -1
        while (found := boards.changes(after, 0 if before < 0 else BEAT_S)) is not None:
            after, order, changed = found
            if after != before:
                event = {"run": boards.run, "order": order, "boards": [view.board_view(b, t) for b, t in changed]}
                text = f"id: {boards.run}-{after}\ndata: {json.dumps(event)}\n\n"
            else:
                text = ": nothing new\n\n"
            self.wfile.write(text.encode())
            before = after

    def _board(self, name: str) -> Board:
        try:
            return self.studio.boards.get(name)
        except KeyError:
            raise Declined(HTTPStatus.NOT_FOUND, "that board is gone from the server's memory") from None

    def _tile(self, name: str, number: int) -> Tile:
        board = self._board(name)
        if number >= len(board.tiles):
            raise Declined(HTTPStatus.NOT_FOUND, f"that board has {len(board.tiles)} pictures")
        return board.tiles[number]
