"""Training pairs whose files say nothing: both classes go through the same draws of codec, quality, size and scaling.

Where real pictures came as JPEG and generated ones as PNG, a head learns the codec. So every picture is encoded anew,
several times, and the draws of real picture n are those of generated picture n. What a first file took from its picture
stays lost, though: where real pictures were saved much worse than generated ones, that is still to be learned. Draws of
lower quality, smaller scales or more passes bury more of it, and more of what a generator leaves.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["Draws", "Encoding", "Example", "encoded", "encodings", "matched"]

_SAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What is drawn from, each alike likely; `quality`, `scales` and `passes`, encodings in a row, are ranges."""

    formats: tuple[str, ...] = ("JPEG", "JPEG", "WEBP", "PNG")
    quality: tuple[int, int] = (40, 98)
    chroma: tuple[str, ...] = ("4:4:4", "4:2:0")
    scales: tuple[float, float] = (0.5, 1.0)
    resampling: tuple[str, ...] = ("bilinear", "bicubic", "lanczos", "box")
    passes: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if unknown := set(self.formats) - {"JPEG", "WEBP", "PNG"}:
            raise ValueError(f"formats {sorted(unknown)} are not drawn; use JPEG, WEBP and PNG")
        if not 1 <= self.quality[0] <= self.quality[1] <= 100 or not 0 < self.scales[0] <= self.scales[1] <= 2:
            raise ValueError(f"quality {self.quality} must lie in 1 to 100 and scales {self.scales} in 0 to 2, rising")
        if not 1 <= self.passes[0] <= self.passes[1]:
            raise ValueError(f"passes {self.passes} must rise from 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """One way to encode: scaled first, cut by up to 7 pixels so that blocks of a first JPEG do not line up."""

    format: str
    quality: int
    chroma: str
    scale: float
    resampling: str
    offset: tuple[int, int] = (0, 0)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The RGB picture as it comes back from such a file."""
        left, top = (min(cut, side // 4) for cut, side in zip(self.offset, image.size, strict=True))
        cut = image.crop((left, top, image.width, image.height))
        size = (max(8, round(cut.width * self.scale)), max(8, round(cut.height * self.scale)))
        small = cut if size == cut.size else cut.resize(size, _RESAMPLING[self.resampling])
        file = io.BytesIO()
        if self.format == "JPEG":
            small.save(file, "JPEG", quality=self.quality, subsampling=_SAMPLING[self.chroma])
        elif self.format == "WEBP":
            small.save(file, "WEBP", quality=self.quality, method=2)
        else:
            small.save(file, "PNG", compress_level=1)
        with Image.open(file) as again:
            return again.convert("RGB")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Example:
    """One re-encoded picture; `group` is its place in its class, the same for a real and a generated one."""

    image: Image.Image
    generated: bool
    group: int
    encoding: tuple[Encoding, ...]


def encoded(image: Image.Image, chain: Sequence[Encoding]) -> Image.Image:
    """The RGB picture after these encodings, one after the other."""
    for encoding in chain:
        image = encoding(image)
    return image


def encodings(count: int, seed: int, place: int = 0, draws: Draws | None = None) -> list[tuple[Encoding, ...]]:
    """The encodings of the pictures at one place: they depend on seed and place alone. Only the first one scales."""
    draws, draw = draws or Draws(), np.random.default_rng([seed, place])
    found: list[tuple[Encoding, ...]] = []
    for _ in range(count):
        passes = int(draw.integers(draws.passes[0], draws.passes[1] + 1))
        found.append(tuple(_drawn(draws, draw, scaled=number == 0) for number in range(passes)))
    return found


def _drawn(draws: Draws, draw: np.random.Generator, *, scaled: bool) -> Encoding:
    return Encoding(
        format=draws.formats[draw.integers(len(draws.formats))],
        quality=int(draw.integers(draws.quality[0], draws.quality[1] + 1)),
        chroma=draws.chroma[draw.integers(len(draws.chroma))],
        scale=float(draw.uniform(*draws.scales)) if scaled else 1.0,
        resampling=draws.resampling[draw.integers(len(draws.resampling))],
        offset=(int(draw.integers(8)), int(draw.integers(8))),
    )


def matched(
    real: Sequence[Image.Image],
    generated: Sequence[Image.Image],
    seed: int,
    *,
    copies: int = 3,
    draws: Draws | None = None,
) -> Iterator[Example]:
    """Every picture `copies` times, in pairs, real first. Both classes get the same draws if they are equally many.

    ValueError if they are not, or of different sizes at one place: the size would tell them apart.
    """
    if len(real) != len(generated):
        raise ValueError(
            f"{len(real)} real and {len(generated)} generated pictures; give as many of one as of the other"
        )
    for place, pair in enumerate(zip(real, generated, strict=True)):
        if pair[0].size != pair[1].size:
            raise ValueError(f"pair {place} has the sizes {pair[0].size} and {pair[1].size}; scale both alike first")
        for chain in encodings(copies, seed, place, draws):
            for target, image in zip((False, True), pair, strict=True):
                found = encoded(image.convert("RGB"), chain)
                yield Example(image=found, generated=target, group=place, encoding=chain)
