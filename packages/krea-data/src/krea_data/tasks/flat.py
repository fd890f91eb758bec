"""Flat, near-blank, letterboxed and noise pictures, each by a number that stays in the row (Krea 2 report, data)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.picture import decode

__all__ = ["Flat", "bars", "entropy", "laplacian"]

_LEVELS = 16  # per channel in the colour histogram


def entropy(rgb: NDArray[np.uint8]) -> float:
    """Shannon entropy in bits of the colours of an `h w 3` picture at 16 levels per channel: 0 (one colour) to 12."""
    code = (rgb // (256 // _LEVELS)).astype(np.int64) @ np.array([_LEVELS**2, _LEVELS, 1])
    share = np.bincount(code.ravel()) / code.size
    share = share[share > 0]
    return float(max(0.0, -(share * np.log2(share)).sum()))


def _depth(strips: NDArray[np.uint8]) -> int:
    """How many strips from the first on are of one colour, the same for all of them, and not white."""
    same = np.abs(strips.astype(np.int16) - strips[0, 0].astype(np.int16)).max(axis=(1, 2)) <= 8
    if strips[0, 0].min() >= 247:
        return 0
    return len(same) if same.all() else int(same.argmin())


def bars(rgb: NDArray[np.uint8]) -> float:
    """The share of an `h w 3` picture that is letterbox: uniform bars, not white, at two opposite edges."""
    across = rgb.transpose(1, 0, 2)
    pairs = [(_depth(side), _depth(side[::-1]), len(side)) for side in (rgb, across)]
    return float(max((first + last) / length if first and last else 0.0 for first, last, length in pairs))


def laplacian(grey: NDArray[np.float64]) -> float:
    """Variance of the 4-neighbour Laplacian of an `h w` grey picture in 0..255: small is blurred, huge is noise."""
    middle = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * middle).var()) if middle.size else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Flat:
    """Drops "blank" (nearly all white or black), "flat" (few colours), "bars" (letterbox) and "noise".

    The limits suit drawings on white; whatever is dropped, its numbers stay, so that a limit can be moved later.
    """

    blobs: Blobs
    blank_limit: float = 0.97  # share of white or of black pixels
    least_entropy: float = 0.35  # bits
    bars_limit: float = 0.2
    laplacian_limit: float = 60_000.0
    name: str = "flat"
    after: tuple[str, ...] = ("decode",)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        return [self._measure(np.asarray(decode(self.blobs.get(row.blob))[0])) for row in rows]

    def _measure(self, rgb: NDArray[np.uint8]) -> Result:
        grey = rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        value = {
            "entropy": round(entropy(rgb), 4),
            "white": round(float((rgb.min(axis=2) >= 250).mean()), 4),
            "black": round(float((rgb.max(axis=2) <= 5).mean()), 4),
            "bars": round(bars(rgb), 4),
            "laplacian": round(laplacian(grey), 1),
        }
        return Result(value=value, drop=self._reason(value))

    def _reason(self, value: dict[str, float]) -> str | None:
        if max(value["white"], value["black"]) > self.blank_limit:
            return "blank"
        if value["entropy"] < self.least_entropy:
            return "flat"
        if value["bars"] > self.bars_limit:
            return "bars"
        return "noise" if value["laplacian"] > self.laplacian_limit else None
