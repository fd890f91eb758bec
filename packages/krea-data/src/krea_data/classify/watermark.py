"""Watermarks that generators write into pixels, by how many bits differ from those they are known to write.

The code is that of the package invisible-watermark (`dwtDct`, one bit for each block of 8 x 8 pixels, over and over),
decoded here by numpy. It does not survive scaling, and a few bits are wrong even in an untouched picture: equality
finds next to nothing. A message is found if a picture without one would come as near once in a million times, were its
bits drawn by chance.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from krea_data.classify.evidence import Evidence

__all__ = ["MESSAGES", "Message", "bits_of", "watermark_evidence"]

_STEP = 36.0  # of invisible-watermark 0.2.0 for its second channel, U
_LEAST_PX = 256 * 256  # smaller pictures are not marked
_CHANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Message:
    """The bits that some generators write."""

    name: str
    bits: str

    @property
    def limit(self) -> int:
        """Bits that may differ."""
        count, sure = len(self.bits), 0.0
        for wrong in range(count):
            sure += math.comb(count, wrong) / 2**count
            if sure > _CHANCE:
                return wrong - 1
        return count


def _ascii(text: str) -> str:
    return "".join(f"{letter:08b}" for letter in text.encode())


MESSAGES: tuple[Message, ...] = (
    Message("Stable Diffusion 1", _ascii("StableDiffusionV1")),
    Message("Stable Diffusion 2", _ascii("SDV2")),
    Message("Stable Diffusion XL", "101100111110110010010000011110111011000110011110"),
    Message("FLUX", "001010101111111010000111100111001111010100101110"[2:]),  # written with bin(), which drops zeros
)


def watermark_evidence(image: Image.Image, messages: tuple[Message, ...] = MESSAGES) -> Evidence | None:
    """The message that lies nearest, relative to its length, if it is near enough; some writers swap red and blue."""
    found = []
    for swapped in (False, True) if image.width * image.height >= _LEAST_PX else ():
        blocks = _blocks(image, swapped)
        for message in messages:
            wrong = int((_read(blocks, len(message.bits)) != _bits(message)).sum())
            if wrong <= message.limit:
                found.append((wrong / len(message.bits), message, wrong))
    if not found:
        return None
    _, message, wrong = min(found, key=lambda one: one[0])
    detail = f"{message.name}, {wrong} of {len(message.bits)} bits differ"
    return Evidence(rule="watermark", answer="yes", detail=detail)


def bits_of(image: Image.Image, count: int) -> NDArray[np.bool_]:
    """The `count` bits that lie in a picture, whether it was marked or not; ValueError for one too small."""
    if image.width * image.height < _LEAST_PX:
        raise ValueError(f"{image.width} x {image.height} pixels are fewer than 256 x 256: such are not marked")
    return _read(_blocks(image), count)


def _bits(message: Message) -> NDArray[np.bool_]:
    return np.array([bit == "1" for bit in message.bits])


def _read(blocks: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """What most blocks of each bit say."""
    places = np.arange(len(blocks)) % count
    said = np.bincount(places, blocks, minlength=count) / np.maximum(1, np.bincount(places, minlength=count))
    return said * 255 > 127


def _blocks(image: Image.Image, swapped: bool = False) -> NDArray[np.bool_]:
    """One bit for each block, row by row: where its largest number but the first lies between two steps."""
    rgb = np.asarray(image.convert("RGB"), dtype=np.float64)[..., :: -1 if swapped else 1]
    rgb = rgb[: len(rgb) // 4 * 4, : rgb.shape[1] // 4 * 4]
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    u = np.clip(np.rint((rgb[..., 2] - luma) * 0.492 + 128), 0, 255)
    low = (u[0::2, 0::2] + u[0::2, 1::2] + u[1::2, 0::2] + u[1::2, 1::2]) / 2  # Haar's coarse half
    rows, columns = low.shape[0] // 4, low.shape[1] // 4
    cut = low[: rows * 4, : columns * 4].reshape(rows, 4, columns, 4).transpose(0, 2, 1, 3).reshape(-1, 16)
    strongest = 1 + np.abs(cut[:, 1:]).argmax(axis=1)
    values = np.abs(cut[np.arange(len(cut)), strongest])
    return values % _STEP > 0.5 * _STEP
