"""Reading the text in a picture: what stands where, in which order, and how much of the picture it takes.

The reader is rapidocr with PP-OCRv6 (small) on onnxruntime; its models lie inside the wheel. It reads Latin letters
with nearly all their accents, Chinese (simplified and traditional), Japanese kana and kanji, Greek letters, digits and
signs. It has no letters for Cyrillic, Hangul, Arabic, Hebrew, Thai or the scripts of India: such text may be found, and
comes out as other letters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageOps

__all__ = ["RapidReader", "Reader", "Text", "density", "in_order"]

_MASK_PX = 512  # the longer side at which areas are counted
_THINNEST = 4  # ratio of sides; the reader enlarges thinner pictures a hundredfold, so they get a white margin
_LEAST_PX = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A line of text with its confidence from 0 to 1 and its four corners in pixels, clockwise from its upper left."""

    text: str
    confidence: float
    corners: tuple[tuple[float, float], ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        across, down = zip(*self.corners, strict=True)
        return min(across), min(down), max(across), max(down)


class Reader(Protocol):
    """Finds the texts in an RGB picture, in any order; `name` says which program and models."""

    @property
    def name(self) -> str: ...

    def __call__(self, image: Image.Image) -> Sequence[Text]: ...


class RapidReader:
    """rapidocr, opened at the first picture, so that it can be sent to workers; larger pictures are read smaller."""

    name = "rapidocr/PP-OCRv6-small"

    def __init__(self, threads: int = 1, longest_px: int = 2000) -> None:
        self.threads, self.longest_px = threads, longest_px
        self._engine: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"threads": self.threads, "longest_px": self.longest_px, "_engine": None}

    def __call__(self, image: Image.Image) -> list[Text]:
        """The texts in reading order."""
        self._engine = self._engine or _opened(self.threads, self.longest_px)
        width, height = image.size
        least = max(_LEAST_PX, -(-max(width, height) // _THINNEST))
        missing = max(0, least - width), max(0, least - height)
        padded = ImageOps.expand(image, (0, 0, *missing), "white") if any(missing) else image
        found = self._engine(np.ascontiguousarray(np.asarray(padded.convert("RGB"))[..., ::-1]))
        if found.txts is None or found.boxes is None:
            return []
        limit = np.array([width, height])
        texts = [
            Text(text=str(text), confidence=float(score), corners=_corners(np.clip(box, 0, limit)))
            for text, score, box in zip(found.txts, found.scores, found.boxes, strict=True)
        ]
        return in_order(texts)


def _corners(box: Any) -> tuple[tuple[float, float], ...]:
    return tuple((round(float(x), 1), round(float(y), 1)) for x, y in box)


def _opened(threads: int, longest_px: int) -> Any:
    try:
        import onnxruntime  # noqa: F401  (rapidocr takes it, and does not require it)
        from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports] - its wheels need a graphics library
    except ImportError as error:
        raise ImportError("reading text needs rapidocr and onnxruntime; install krea-data[ocr]") from error
    settings = {
        "Global.log_level": "critical",
        "Global.max_side_len": longest_px,
        "Global.text_score": 0.0,  # the task has the limit
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    return RapidOCR(params=settings)


def in_order(texts: Sequence[Text]) -> list[Text]:
    """Line by line from the top, each from the left.

    Two texts share a line where each one's middle lies within the other's height. Columns are not told apart: a page of
    two columns is read across.
    """
    lines: list[list[Text]] = []
    for text in sorted(texts, key=lambda one: (one.box[1] + one.box[3], one.box[0])):
        if lines and _level(lines[-1][0], text):
            lines[-1].append(text)
        else:
            lines.append([text])
    return [text for line in lines for text in sorted(line, key=lambda one: one.box[0])]


def _level(one: Text, other: Text) -> bool:
    _, top, _, bottom = one.box
    _, upper, _, lower = other.box
    return top < (upper + lower) / 2 < bottom and upper < (top + bottom) / 2 < lower


def density(texts: Sequence[Text], size: tuple[int, int]) -> float:
    """The share of a picture of this size that lies under text, overlaps counted once."""
    if not texts:
        return 0.0
    scale = _MASK_PX / max(size)
    mask = Image.new("1", (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
    draw = ImageDraw.Draw(mask)
    for text in texts:
        draw.polygon([(x * scale - 0.5, y * scale - 0.5) for x, y in text.corners], fill=1)
    return float(np.asarray(mask).mean())
