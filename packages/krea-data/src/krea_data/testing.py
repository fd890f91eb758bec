"""Stand-ins for tests; the tests that every `Table` has to pass are in `krea_data.contract`."""

import hashlib
import io
import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from krea_data.rows import Result, Row

__all__ = ["CrashingTask", "FakeTask", "MemoryBlobs", "picture", "rows"]


class MemoryBlobs:
    """`Blobs` in a dict; `get` raises KeyError for a blob that is not there."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def get(self, key: str) -> bytes:
        """The bytes of a blob."""
        return self._blobs[key]

    def put(self, data: bytes) -> str:
        """Store and return the key: the sha256 of the data in hex."""
        key = hashlib.sha256(data).hexdigest()
        self._blobs[key] = data
        return key

    def __len__(self) -> int:
        return len(self._blobs)


def picture(seed: int, side_px: int = 32) -> bytes:
    """A small PNG of a few coloured shapes, the same for the same seed."""
    draw = random.Random(seed)
    image = Image.new("RGB", (side_px, side_px), tuple(draw.randrange(256) for _ in range(3)))
    canvas = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = draw.randrange(side_px), draw.randrange(side_px)
        box = (left, top, left + draw.randrange(2, side_px), top + draw.randrange(2, side_px))
        colour = tuple(draw.randrange(256) for _ in range(3))
        (canvas.rectangle if draw.random() < 0.5 else canvas.ellipse)(box, fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def rows(count: int, blobs: MemoryBlobs | None = None, *, source: str = "synthetic") -> list[Row]:
    """Rows `<source>/00000`, ... with made-up origins; with `blobs` their pictures are stored there too."""
    made = []
    for number in range(count):
        key = blobs.put(picture(number)) if blobs is not None else hashlib.sha256(b"%d" % number).hexdigest()
        meta = {"source": source, "style": ("flat", "3d")[number % 2], "label": f"thing {number}", "tags": ["made up"]}
        made.append(Row(id=f"{source}/{number:05d}", blob=key, meta=meta))
    return made


def _seen(row: Row) -> Result:
    return Result(value={"seen": row.id})


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeTask:
    """A task that answers every row by `answer` (by default with its own id)."""

    name: str = "fake"
    after: tuple[str, ...] = ()
    answer: Callable[[Row], Result] = _seen

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        """One result per row, in order."""
        return [self.answer(row) for row in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class CrashingTask:
    """A task that meets `poison` ids: it raises, or with `kill` takes the whole process down as SIGKILL does."""

    poison: frozenset[str]
    name: str = "fake"
    after: tuple[str, ...] = ()
    kill: bool = False

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        """One result per row, in order, unless a row of the batch is poison."""
        bad = [row.id for row in rows if row.id in self.poison]
        if bad and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if bad:
            raise RuntimeError(f"cannot work on {bad[0]}")
        return [_seen(row) for row in rows]
