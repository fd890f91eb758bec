"""A perceptual hash of 144 bits and a colour hash of 42, bit for bit those of imagehash, for many pictures at once.

The perceptual hash sees shapes and no colour, the colour hash the reverse; two pictures are copies when both agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.picture import decode
from krea_data.tasks.shrink import shrunk

__all__ = ["Hash", "colour_hash", "hexadecimal", "perceptual_hash"]

_SIZE = 12  # bits per axis of the perceptual hash
_SIDE = 48  # pixels per axis of what it looks at: 4 per bit
_STEP = 64  # pictures per pass: their coefficients stay in the processor's cache
_NEITHER = 14  # the class of pixels in no bin
_PAYS = 50_000_000  # pixels
_BLOCK = 1 << 16  # pixels looked up at a time
_PI = Fraction(31415926535897932384626433832795028842, 10**37)


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float64]:
    """cos(pi k / 96) for k = 1..48, with the rounding of pocketfft's own table (a product of two coarser ones).

    Symmetric pictures have coefficients that are zero but for rounding, and the hash compares them with their median:
    equal bits need equal roundings, not only equal formulas.
    """
    unit = float(_PI / (4 * 4 * _SIDE))  # an eighth of the step, as pocketfft counts

    def point(k: int) -> tuple[float, float]:
        near = 8 * k * unit
        rest = (8 * _SIDE - 8 * k) * unit  # to the quarter turn
        return (math.cos(near), math.sin(near)) if k < _SIDE // 2 else (math.sin(rest), math.cos(rest))

    fine, coarse = [point(k) for k in range(16)], [point(16 * k) for k in range(4)]
    table = [(fine[k % 16], coarse[k // 16]) for k in range(1, _SIDE + 1)]
    return np.array([one[0] * other[0] - one[1] * other[1] for one, other in table])


def _dct(x: NDArray[np.float64], cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first 12 coefficients of the unnormalised DCT-II over the last axis of 48, in pocketfft's order of steps."""
    half = _SIDE // 2
    spectrum = np.zeros((*x.shape[:-1], half + 1), dtype=np.complex128)
    spectrum.real[..., 0] = 2 * x[..., 0]
    spectrum.real[..., half] = 2 * x[..., -1]
    odd, even = x[..., 1:-1:2], x[..., 2::2]
    spectrum.real[..., 1:half] = even + odd
    spectrum.imag[..., 1:half] = even - odd
    y = np.fft.irfft(spectrum, n=_SIDE, norm="forward")
    low, high = y[..., 1:_SIZE], y[..., : _SIDE - _SIZE : -1]
    here, there = cosines[: _SIZE - 1], cosines[_SIDE - 2 : _SIDE - _SIZE - 1 : -1]
    found = np.empty((*x.shape[:-1], _SIZE))
    found[..., 0] = y[..., 0]
    found[..., 1:] = 0.5 * ((here * high + there * low) + (here * low - there * high))
    return found


def perceptual_hash(images: Sequence[Image.Image]) -> NDArray[np.bool_]:
    """The 144 bits `b 144` of each picture, equal to `imagehash.phash(image, hash_size=12)`."""
    cosines = _cosines()
    bits = np.empty((len(images), _SIZE * _SIZE), dtype=np.bool_)
    for start in range(0, len(images), _STEP):
        part = images[start : start + _STEP]
        pixels = shrunk([image.convert("L") for image in part], _SIDE).astype(np.float64)
        down = _dct(pixels.transpose(0, 2, 1), cosines)  # b x v: over rows first, as imagehash does
        both = _dct(down.transpose(0, 2, 1), cosines).reshape(len(part), -1)  # b v u
        bits[start : start + _STEP] = both > np.median(both, axis=1, keepdims=True)
    return bits


def _classes(image: Image.Image) -> NDArray[np.uint8]:
    """What every pixel is: 0 black, 1 grey, 2..7 one of six faint hues, 8..13 of six bright ones, 14 neither."""
    grey = np.asarray(image.convert("L")).ravel()
    hue, saturation, _ = np.asarray(image.convert("HSV")).reshape(-1, 3).T
    # bins of 42.5 with the last one closed: hue 255 falls into the sixth; a saturation of exactly 170 is in no bin
    sector = np.minimum(2 * np.arange(256) // 85, 5).astype(np.uint8)[hue]
    found = np.where(saturation < 170, sector + np.uint8(2), sector + np.uint8(8))
    found[saturation == 170] = _NEITHER
    found[saturation < 85] = 1
    found[grey < 32] = 0
    return found


@lru_cache(maxsize=1)
def _table() -> NDArray[np.uint8]:
    """The class of every colour of 24 bits, the first byte the lowest."""
    step = 1 << 20
    parts = []
    for start in range(0, 1 << 24, step):
        colours = np.arange(start, start + step, dtype="<u4").view(np.uint8).reshape(1 << 10, 1 << 10, 4)
        parts.append(_classes(Image.fromarray(np.ascontiguousarray(colours[..., :3]))))
    return np.concatenate(parts)


class _Pace:
    """Whether the table pays: it costs as much as 50 million pixels by hand. Being wrong costs time alone."""

    pixels = 0

    def pays(self, more: int) -> bool:
        self.pixels += more
        return self.pixels > _PAYS


_pace = _Pace()


def _colour_counts(image: Image.Image, *, table: bool) -> Sequence[int]:
    """How many pixels of the picture are of each of the 15 classes."""
    if not table:
        return np.bincount(_classes(image), minlength=_NEITHER + 1).tolist()
    classes, rows = _table(), max(1, _BLOCK // image.width)
    counts: list[list[int]] = []
    for top in range(0, image.height, rows):
        part = image if rows >= image.height else image.crop((0, top, image.width, min(top + rows, image.height)))
        found = classes.take(np.frombuffer(part.tobytes("raw", "RGBX"), dtype="<u4") & 0xFFFFFF)
        # Pillow counts bytes several times as fast as numpy
        counts.append(Image.frombuffer("L", (len(found), 1), found, "raw", "L", 0, 1).histogram()[: _NEITHER + 1])
    return [sum(some) for some in zip(*counts, strict=True)]


def colour_hash(images: Sequence[Image.Image], *, table: bool | None = None) -> NDArray[np.bool_]:
    """The 42 bits `b 42` of each RGB picture, equal to `imagehash.colorhash(image, binbits=3)`.

    With `table` pixels are looked up in a table of all colours, which takes a second to make and 16 MB; by default once
    that pays.
    """
    if not images:
        return np.empty((0, 42), dtype=np.bool_)
    sizes = [image.width * image.height for image in images]
    tables = [_pace.pays(pixels) if table is None else table for pixels in sizes]
    counts = np.array([_colour_counts(one, table=use) for one, use in zip(images, tables, strict=True)])
    levels = np.empty((len(images), 14), dtype=np.int64)
    levels[:, :2] = counts[:, :2] / np.array(sizes)[:, None] * 8
    levels[:, 2:] = counts[:, 2:_NEITHER] * 8 / np.maximum(1, counts[:, 2:].sum(axis=1, keepdims=True))
    # imagehash's coding of 0..7 is not binary: its middle bit says "2 or more"
    bits = np.stack([levels >= 4, levels >= 2, np.minimum(levels, 7) % 2 == 1], axis=2)
    return bits.reshape(len(images), 42)


def hexadecimal(bits: NDArray[np.bool_]) -> str:
    """Bits as imagehash writes them: hex digits, the first bit the highest, zeros in front to a whole digit."""
    return f"{int(''.join(str(int(bit)) for bit in bits.tolist()), 2):0{math.ceil(len(bits) / 4)}x}"


def _mean(image: Image.Image) -> str:
    return "".join(f"{round(value):02x}" for value in np.asarray(image).mean(axis=(0, 1)).tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class Hash:
    """Keeps every row; "vague" marks perceptual hashes of pictures with next to no shape, which match anything."""

    blobs: Blobs
    least_bits: int = 36  # and at most 144 - 36: the median splits the bits of a real picture in two halves
    name: str = "hash"
    after: tuple[str, ...] = ("decode",)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row: "phash", "colour" and "mean" (the mean colour, rrggbb) in hex, and "vague"."""
        images = [decode(self.blobs.get(row.blob))[0] for row in rows]
        found: list[Result] = []
        hashes = zip(images, perceptual_hash(images), colour_hash(images), strict=True)
        for image, shape, colour in hashes:
            vague = not self.least_bits <= int(shape.sum()) <= shape.size - self.least_bits
            value = {"phash": hexadecimal(shape), "colour": hexadecimal(colour), "mean": _mean(image), "vague": vague}
            found.append(Result(value=value))
        return found
