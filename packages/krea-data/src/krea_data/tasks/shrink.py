"""Many pictures made small at once, pixel for pixel as Pillow's LANCZOS does it, by products of matrices.

Pillow works with whole numbers: weights of 22 bits, one pass along the rows, rounded to 8 bits, one along the columns.
Here each weight is split into two numbers of which all sums are exact in 32-bit floats, so that the products may be
done in any order and by any library of linear algebra; what is left is to join the halves and to round as Pillow does.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["shrunk"]

_PRECISION = 22  # bits of Pillow's weights
_LOW = 8  # of them in the lower half
_EXACT = 1 << 24  # up to here all whole numbers are 32-bit floats
_BLOCK = 1 << 17  # pixels at a time: what is worked on stays in the processor's cache
_FEW = 3  # pictures of a size for which its weights would cost more than they save
_LARGEST = 4000  # pixels along a side: about as far as sums are exact
_ROWS = 256  # of the pictures that tell the weights
_GROUP = 12  # pixels made by one product: each looks at a part of a row alone


class _Group(NamedTuple):
    """What makes some of the pixels of a row: pixels from `start` to `end`, times the weights `pixels 2 some`."""

    start: int
    end: int
    weights: NDArray[np.float32]


@lru_cache(maxsize=100)
def _groups(size: int, small: int) -> tuple[_Group, ...]:
    """How a row becomes smaller, read out of Pillow: what it makes of one pixel, in integers; empty if not exact."""
    if size > _LARGEST:
        return ()
    parts = []
    for start in range(0, size, _ROWS):
        rows = min(_ROWS, size - start)
        one = Image.fromarray(np.eye(rows, size, start, dtype=np.int32) << _PRECISION)
        parts.append(np.asarray(one.resize((small, rows), Image.Resampling.LANCZOS), dtype=np.int64))
    whole = np.concatenate(parts)  # pixel, made pixel
    high = (whole + (1 << (_LOW - 1))) >> _LOW
    halves = np.stack([high, whole - (high << _LOW)], axis=1)
    if (np.abs(halves).sum(axis=0) * 255).max() >= _EXACT:
        return ()
    found: list[_Group] = []
    for first in range(0, small, _GROUP):
        used = np.flatnonzero(whole[:, first : first + _GROUP].any(axis=1))
        start, end = int(used[0]), int(used[-1]) + 1
        part = halves[start:end, :, first : first + _GROUP].reshape(end - start, -1)
        found.append(_Group(start, end, np.ascontiguousarray(part, dtype=np.float32)))
    return tuple(found)


def _along_rows(pixels: NDArray[np.float32], groups: Sequence[_Group]) -> NDArray[np.float32]:
    """Rows `n size` of whole numbers up to 255 made small."""
    made = []
    for start, end, weights in groups:
        halves = (pixels[:, start:end] @ weights).astype(np.int32)
        some = halves.shape[1] // 2
        whole = halves[:, :some] << _LOW
        whole += halves[:, some:]
        made.append(whole)
    small = np.concatenate(made, axis=1)
    small += 1 << (_PRECISION - 1)
    small >>= _PRECISION
    return np.clip(small, 0, 255, out=small).astype(np.float32)


def _made(pixels: NDArray[np.float32], small: int, *, down: bool) -> NDArray[np.float32]:
    """Pictures `b h w` made small along rows and columns, or with `down` along columns and rows."""
    if down:
        return _made(pixels.transpose(0, 2, 1), small, down=False).transpose(0, 2, 1)
    count, height, width = pixels.shape
    rows = _along_rows(np.ascontiguousarray(pixels).reshape(-1, width), _groups(width, small))
    columns = np.ascontiguousarray(rows.reshape(count, height, small).transpose(0, 2, 1)).reshape(-1, height)
    return _along_rows(columns, _groups(height, small)).reshape(count, small, small).transpose(0, 2, 1)


@lru_cache(maxsize=10_000)
def _down_first(width: int, height: int, small: int) -> bool | None:
    """Whether Pillow goes along the columns first, which depends on size and version: tried out with some noise.

    None where neither way gives Pillow's pixels, so that Pillow has to do it.
    """
    if not (_groups(width, small) and _groups(height, small)):
        return None
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(noise).resize((small, small), Image.Resampling.LANCZOS))
    ways = (False, True)
    return next((d for d in ways if (_made(noise[None].astype(np.float32), small, down=d)[0] == theirs).all()), None)


def _same_size(images: Sequence[Image.Image], small: int) -> NDArray[np.float32]:
    down = _down_first(*images[0].size, small)
    if down is None:
        return _by_pillow(images, small)
    return _made(np.stack([np.asarray(image) for image in images]).astype(np.float32), small, down=down)


def _by_pillow(images: Sequence[Image.Image], small: int) -> NDArray[np.float32]:
    resized = [image.resize((small, small), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image, dtype=np.float32) for image in resized])


def shrunk(images: Sequence[Image.Image], small: int) -> NDArray[np.float32]:
    """The pixels `b v u` of grey pictures as `image.resize((small, small), LANCZOS)` makes them."""
    found = np.empty((len(images), small, small), dtype=np.float32)
    places: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image.size, []).append(place)
    for (width, height), mine in places.items():
        if len(mine) < _FEW:
            found[mine] = _by_pillow([images[place] for place in mine], small)
            continue
        step = max(1, _BLOCK // (width * height))
        for start in range(0, len(mine), step):
            part = mine[start : start + step]
            found[part] = _same_size([images[place] for place in part], small)
    return found
