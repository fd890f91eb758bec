"""The boards of one server: what is waiting, being drawn and done, and what has changed since somebody last looked.

Everything here may be called from any thread. The one that draws takes tiles with `take` and reports them with
`advance`, `finish` and `fail`; the ones that answer browsers call the rest.
"""

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from krea_sampler.drawing import Drawing
from krea_sampler.explore import Mixture
from krea_sampler.serve.engine import Settings

__all__ = ["MAX_BOARDS", "MAX_BYTES", "MAX_WAITING", "Board", "Boards", "Stopped", "Tile"]

MAX_BOARDS = 200
MAX_BYTES = 1 << 30  # of finished pictures
MAX_WAITING = 256  # tiles

State = Literal["waiting", "drawing", "done", "failed", "stopped"]


class Stopped(Exception):  # noqa: N818 - it is no error
    """The tile that is being drawn is no longer wanted."""


@dataclass(kw_only=True, slots=True, eq=False)
class Tile:
    """One picture of a board. `caption` says what sets it apart; `origin` how it was found."""

    mixture: Mixture
    settings: Settings
    caption: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    state: State = "waiting"
    step: int = 0
    preview: str = ""  # a data: address
    parameters: Mapping[str, Any] | None = None  # of the finished picture
    stem: str = ""  # of the name of its file
    png: bytes = b""
    error: str = ""
    kept: str = ""  # the name of its file
    note: str = ""  # what the model said about the prompts
    version: int = 0

    def finish(self, parameters: Mapping[str, Any] | None, stem: str, png: bytes) -> None:
        """It is drawn. Of a drawing this is all that stays: its pixels are in the PNG, whose bytes are counted."""
        self.state, self.parameters, self.stem, self.png = "done", parameters, stem, png


@dataclass(kw_only=True, slots=True, eq=False)
class Board:
    """Pictures that were asked for together. `parents` are (board, tile) of those that they came from."""

    kind: Literal["draw", "more", "between", "toward", "repeat", "kept"]
    title: str
    tiles: list[Tile]
    parents: tuple[tuple[str, int], ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    removed: bool = False
    version: int = 0


class Boards:
    """All boards, oldest first. Every change has a number, so that a browser can ask for what came after one.

    The first board is that of the pictures that were kept on disk; it cannot be removed.
    """

    def __init__(self, kept: Sequence[Tile] = ()) -> None:
        self.run = secrets.token_hex(4)  # tells the numbers of this server from those of one before it
        self._kept = Board(kind="kept", title="Kept pictures", tiles=list(kept))
        self._boards: dict[str, Board] = {self._kept.id: self._kept}
        self._version = 0
        self._closed = False
        self._changed = threading.Condition()
        with self._changed:
            self._touch(self._kept, *self._kept.tiles)

    def add(self, board: Board) -> None:
        """Put a board up; what was drawn before is taken over. Raises ValueError if too much is waiting."""
        with self._changed:
            known = {(t.settings, t.mixture): t for b in self._boards.values() for t in b.tiles if t.state == "done"}
            for tile in board.tiles:
                same = known.get((tile.settings, tile.mixture))
                if same is not None:
                    tile.finish(same.parameters, same.stem, same.png)
                    tile.kept, tile.note = same.kept, same.note
            waiting = sum(t.state == "waiting" for b in [*self._boards.values(), board] for t in b.tiles)
            if waiting > MAX_WAITING:
                raise ValueError(f"{waiting} pictures would be waiting; stop a board first, at most {MAX_WAITING} may")
            self._boards[board.id] = board
            self._forget()
            self._touch(board, *board.tiles)

    def get(self, board: str) -> Board:
        """The board of that id; raises KeyError if there is none, or none any more."""
        with self._changed:
            return self._boards[board]

    def stop(self, board: Board) -> None:
        """Draw no more of it; what is done stays."""
        with self._changed:
            for tile in board.tiles:
                if tile.state in ("waiting", "drawing"):
                    tile.state, tile.preview = "stopped", ""
                    self._touch(board, tile)

    def resume(self, board: Board) -> None:
        """Draw what was stopped or has failed."""
        with self._changed:
            for tile in board.tiles:
                if tile.state in ("stopped", "failed"):
                    tile.state, tile.step, tile.error = "waiting", 0, ""
                    self._touch(board, tile)

    def remove(self, board: Board, removed: bool) -> None:
        """Take it down, which stops it, or with False put it up again."""
        if board is self._kept:
            raise ValueError("kept pictures are files; remove those that you no longer want from their folder")
        if removed:
            self.stop(board)
        with self._changed:
            board.removed = removed
            self._touch(board, *board.tiles)

    def mark_kept(self, tile: Tile, name: str) -> None:
        """Remember the file that a picture was saved to, on every board that shows it, and put it on the kept one."""
        with self._changed:
            copy = Tile(mixture=tile.mixture, settings=tile.settings, caption=tile.caption, origin=tile.origin)
            copy.finish(tile.parameters, tile.stem, tile.png)
            self._kept.tiles.append(copy)
            for board in self._boards.values():
                for one in board.tiles:
                    if one.png is tile.png:
                        one.kept = name
                        self._touch(board, one)

    def take(self) -> tuple[Board, Tile] | None:
        """Wait for a tile to draw, of the newest board first; None when the server closes."""
        with self._changed:
            while not self._closed:
                for board in reversed(self._boards.values()):
                    for tile in board.tiles:
                        if tile.state == "waiting":
                            tile.state, tile.step, tile.preview = "drawing", 0, ""
                            self._touch(board, tile)
                            return board, tile
                self._changed.wait()
            return None

    def advance(self, board: Board, tile: Tile, step: int, preview: str = "") -> None:
        """A step is done; raises Stopped if the tile is not wanted any more."""
        with self._changed:
            self._still_wanted(tile)
            tile.step, tile.preview = step, preview or tile.preview
            self._touch(board, tile)

    def finish(self, board: Board, tile: Tile, drawing: Drawing, png: bytes, note: str = "") -> None:
        """The picture is done; raises Stopped if it is not wanted any more."""
        with self._changed:
            self._still_wanted(tile)
            tile.finish(drawing.parameters, drawing.stem, png)
            tile.preview, tile.note = "", note
            self._forget()
            self._touch(board, tile)

    def fail(self, board: Board, tile: Tile, error: str, alone: bool = False) -> None:
        """It cannot be drawn, and nor can the rest of its board, unless it is `alone`."""
        with self._changed:
            for one in board.tiles:
                if one is tile or (one.state == "waiting" and not alone):
                    one.state, one.error, one.preview = "failed", error, ""
                    self._touch(board, one)

    def changes(self, after: int, timeout_s: float) -> tuple[int, list[str], list[tuple[Board, list[int]]]] | None:
        """What changed after a number: the number now, the ids of all boards, boards with the tiles that changed.

        Waits up to `timeout_s` for something to change; None when the server closes.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._version > after, timeout_s)
            if self._closed:
                return None
            up = [board for board in self._boards.values() if not board.removed]
            found = [(board, _since(board.tiles, after)) for board in up if board.version > after]
            return self._version, [board.id for board in up], found

    def close(self) -> None:
        """Let everybody who waits go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _still_wanted(self, tile: Tile) -> None:
        if self._closed or tile.state != "drawing":
            raise Stopped

    def _touch(self, board: Board, *tiles: Tile) -> None:
        self._version += 1
        board.version = self._version
        for tile in tiles:
            tile.version = self._version
        self._changed.notify_all()

    def _forget(self) -> None:
        """Drop the oldest boards that are finished, until the rest fits."""

        def too_many() -> bool:
            pictures = {id(t.png): len(t.png) for b in self._boards.values() for t in b.tiles}
            return len(self._boards) > MAX_BOARDS or sum(pictures.values()) > MAX_BYTES

        for old in list(self._boards.values())[1:-1]:  # neither the kept nor the new one
            if not too_many():
                return
            if all(tile.state not in ("waiting", "drawing") for tile in old.tiles):
                del self._boards[old.id]
                self._version += 1


def _since(tiles: Sequence[Tile], after: int) -> list[int]:
    return [number for number, tile in enumerate(tiles) if tile.version > after]
