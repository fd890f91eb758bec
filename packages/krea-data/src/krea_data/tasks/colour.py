"""Which of the eleven basic colours a picture shows, as words that a caption can use."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["NAMES", "Palette", "names", "palette"]

NAMES = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
_HUES = ((14, "red"), (40, "orange"), (68, "yellow"), (168, "green"), (255, "blue"), (295, "purple"), (342, "pink"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """Colours of the drawing, most of it first, and that of what surrounds it (None if that is not of one colour)."""

    colours: tuple[str, ...]
    background: str | None


def names(image: Image.Image) -> NDArray[np.uint8]:
    """The place in NAMES of the colour of each pixel `h w` of an RGB picture."""
    rgb = np.asarray(image, dtype=np.float64) / 255
    value, least = rgb.max(axis=2), rgb.min(axis=2)
    chroma = value - least
    saturation = chroma / np.maximum(value, 1e-9)
    hue = np.asarray(image.convert("HSV"), dtype=np.float64)[..., 0] * (360 / 256)
    found = np.full(value.shape, NAMES.index("red"), dtype=np.uint8)
    for limit, name in reversed(_HUES):
        found[hue < limit] = NAMES.index(name)
    warm = (hue < 50) | (hue >= 342)
    found[warm & (hue >= 8) & (hue < 50) & (value < 0.68)] = NAMES.index("brown")
    found[warm & ((hue < 14) | (hue >= 342)) & (saturation < 0.55) & (value > 0.75)] = NAMES.index("pink")
    found[chroma < 0.12] = NAMES.index("grey")
    found[(chroma < 0.12) & (least > 0.92)] = NAMES.index("white")
    found[value < 0.22] = NAMES.index("black")
    return found


def palette(image: Image.Image, *, most: int = 3, share: float = 0.12) -> Palette:
    """Up to `most` colours that each fill at least `share` of the drawing, which is all that is not background.

    The background is the colour of at least nine tenths of the picture's border.
    """
    found = names(image)
    border = np.concatenate([found[0], found[-1], found[1:-1, 0], found[1:-1, -1]])
    counts = np.bincount(border, minlength=len(NAMES))
    around = int(counts.argmax()) if counts.max() >= 0.9 * border.size else None
    drawing = np.bincount(found.ravel(), minlength=len(NAMES))
    if around is not None:
        drawing[around] = 0
    total = max(1, int(drawing.sum()))
    order = sorted(range(len(NAMES)), key=lambda one: (-drawing[one], one))
    kept = tuple(NAMES[one] for one in order if drawing[one] >= share * total)[:most]
    return Palette(colours=kept, background=None if around is None else NAMES[around])
