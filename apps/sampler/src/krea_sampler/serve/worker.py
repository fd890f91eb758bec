"""The one thread that draws: takes tiles off the boards, shows previews on the way, and never waits for a browser."""

import base64
import time
import traceback
from collections.abc import Callable
from io import BytesIO

from PIL import Image

from krea_sampler import picture
from krea_sampler.safety import Refused
from krea_sampler.serve.boards import Board, Boards, Stopped, Tile
from krea_sampler.serve.engine import Engine

__all__ = ["Pace", "preview", "work"]

PREVIEW_PX = 384  # at most
SHARE = 0.2  # of the drawing time goes into previews at most
LEAST_S = 0.08  # between two previews


class Pace:
    """When the next preview may be made, so that previews never slow drawing by much, however dear one is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + LEAST_S

    def make(self, image: Callable[[], Image.Image | None]) -> str:
        """A preview, or nothing if it is too early or there is none."""
        begun = self._clock()
        if begun < self._next:
            return ""
        seen = image()
        made = preview(seen) if seen else ""
        ended = self._clock()
        self._next = ended + max(LEAST_S, (ended - begun) * (1 / SHARE - 1))
        return made


def preview(image: Image.Image) -> str:
    """A small JPEG of the picture as a data: address."""
    small = image.copy()
    small.thumbnail((PREVIEW_PX, PREVIEW_PX))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


UNFORESEEN = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError)
"""Faults of the program or of a classifier: one picture fails, the next is drawn."""


def work(boards: Boards, engine: Engine) -> None:
    """Draw until the boards are closed."""
    while (taken := boards.take()) is not None:
        board, tile = taken
        try:
            _draw(boards, board, tile, engine)
        except Stopped:
            continue
        except Refused as refused:
            boards.fail(board, tile, str(refused), alone=True)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            boards.fail(board, tile, " ".join(str(error).split()) or type(error).__name__)
        except UNFORESEEN as error:
            traceback.print_exception(error)
            boards.fail(board, tile, "drawing broke down; where the server was started it says why")
        finally:
            if tile.state == "drawing":  # something that nobody foresaw: it is shown where the server was started
                boards.fail(board, tile, "drawing broke down; see where the server was started, and start it again")


def _draw(boards: Boards, board: Board, tile: Tile, engine: Engine) -> None:
    pace = Pace()

    def on_step(step: int, image: Callable[[], Image.Image | None]) -> None:
        boards.advance(board, tile, step)  # first: a stopped picture needs no preview
        last = step == tile.settings.steps
        shown = "" if last else pace.make(image)
        if shown:
            boards.advance(board, tile, step, shown)

    drawing = engine.draw(tile.mixture, tile.settings, on_step, tile.origin)
    png = picture.encode(drawing.image, drawing.parameters)
    boards.finish(board, tile, drawing, png, engine.notes(tile.mixture))
