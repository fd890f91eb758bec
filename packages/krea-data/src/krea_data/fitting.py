"""Sizes of a stage: about the same number of pixels at every aspect, each side a multiple of the model's patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from PIL import Image

__all__ = ["Size", "fitted", "nearest", "sizes"]


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int


def sizes(side_px: int, *, step_px: int = 16, most: float = 2.0) -> list[Size]:
    """Sizes with about `side_px`² pixels and aspects from 1 / `most` to `most`, in order of width.

    For each length of the shorter side the longer one that comes nearest. ValueError unless a square fits.
    """
    if step_px < 1 or side_px < step_px or side_px % step_px or most < 1:
        raise ValueError(
            f"side {side_px} px must be a multiple of the step {step_px} px, and the aspect {most:g} at least 1"
        )
    found: set[Size] = set()
    for short in range(step_px, side_px + 1, step_px):
        long = round(side_px**2 / short / step_px) * step_px
        if long <= most * short:
            found |= {Size(long, short), Size(short, long)}
    return sorted(found)


def nearest(known: Sequence[Size], width: int, height: int) -> Size | None:
    """The size that cuts the least off a picture without enlarging it, or None if the picture is smaller than that."""
    best = min(known, key=lambda size: (abs(log(size.width * height / (size.height * width))), size))
    return best if width >= best.width and height >= best.height else None


def fitted(image: Image.Image, size: Size) -> Image.Image:
    """The picture made smaller until it just covers the size, its middle cut out; Lanczos, so that edges stay sharp."""
    scale = max(size.width / image.width, size.height / image.height)
    wide, high = size.width / scale, size.height / scale
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    box = (left, top, left + wide, top + high)
    return image.resize((size.width, size.height), Image.Resampling.LANCZOS, box=box)
