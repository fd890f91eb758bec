"""Is the picture still itself at half the side? What a low resolution cannot show is left for a higher stage."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.picture import decode

__all__ = ["Complexity", "lost"]


def lost(image: Image.Image, side_px: int) -> float:
    """The share of an RGB picture's variance that going to `side_px` (longer side) and back destroys: 0 to about 1."""
    if side_px >= max(image.size):
        return 0.0
    scale = side_px / max(image.size)
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    back = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float64)
    whole = np.asarray(image, dtype=np.float64)
    variance = whole.var(axis=(0, 1)).sum()
    return float(((whole - back) ** 2).mean(axis=(0, 1)).sum() / variance) if variance > 0 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Complexity:
    """Drops "complex": pictures that lose more than `limit` of their variance at `side_px` (default: half the side)."""

    blobs: Blobs
    side_px: int | None = None
    limit: float = 0.5
    name: str = "complexity"
    after: tuple[str, ...] = ("flat",)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        return [self._measure(decode(self.blobs.get(row.blob))[0]) for row in rows]

    def _measure(self, image: Image.Image) -> Result:
        side = self.side_px or max(1, max(image.size) // 2)
        share = lost(image, side)
        return Result(value={"lost": round(share, 5), "side_px": side}, drop="complex" if share > self.limit else None)
