"""Pictures with known style and content, and a style encoder that needs no training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from krea_style.draws import generator, normals

__all__ = ["PLACES", "FakeStyleEncoder", "Look", "ToyBatch", "look", "mask", "paint", "two_styles"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """A style: the colours of figure and ground, and stripes with a wavelength, an angle and a strength."""

    figure: tuple[float, float, float]
    ground: tuple[float, float, float]
    wavelength_px: float = 4.0
    angle: float = 0.0
    stripes: float = 0.3


def look(seed: int) -> Look:
    """A random style."""
    draws = generator(seed, "look", 0, "")
    figure, ground = draws.uniform(-0.8, 0.8, (2, 3)).tolist()
    while math.dist(figure, ground) < 0.8:
        ground = draws.uniform(-0.8, 0.8, 3).tolist()
    wavelength_px, angle, stripes = draws.uniform([2.5, 0.0, 0.2], [6.0, math.pi, 0.5]).tolist()
    return Look(figure=tuple(figure), ground=tuple(ground), wavelength_px=wavelength_px, angle=angle, stripes=stripes)


def mask(seed: int, side_px: int = 48) -> Tensor:
    """A content: a random smooth figure, `h w` in [0, 1], about half of the picture."""
    rough = normals(seed, "mask", 0, "", (1, 1, 4, 4))
    smooth = F.interpolate(rough, (side_px, side_px), mode="bicubic", align_corners=True)[0, 0]
    return torch.sigmoid(12 * (smooth - smooth.median()))


def paint(content: Tensor, style: Look) -> Tensor:
    """A content `h w` in a style: `3 h w` in [-1, 1]."""
    h, w = content.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    phase = 2 * math.pi / style.wavelength_px * (x * math.cos(style.angle) + y * math.sin(style.angle))
    figure, ground = (torch.tensor(colour)[:, None, None] for colour in (style.figure, style.ground))
    return (content * figure + (1 - content) * ground + style.stripes * phase.sin()).clamp(-1, 1)


class FakeStyleEncoder:
    """Two tokens from what a picture's colours and fine changes are on average: a `StyleEncoder` without weights."""

    def __init__(self, features: int = 64) -> None:
        self.mixing = torch.stack([normals(0, "fake style", 0, i, (6, features)) for i in range(2)]) / 6**0.5

    def __call__(self, images: Tensor) -> Tensor:
        x = images.float()
        colours = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
        changes = torch.cat([x.diff(dim=2).abs().mean((2, 3)), x.diff(dim=3).abs().mean((2, 3))], 1)
        return torch.einsum("bms,msf->bmf", torch.stack([colours, changes], 1), self.mixing.to(x.device))


@dataclass(frozen=True, slots=True)
class ToyBatch:
    """A batch as the training loop hands it over."""

    images: Tensor
    captions: Sequence[Mapping[str, str]]
    ids: Sequence[str]


PLACES = ("left", "right", "top", "bottom")


def two_styles(count: int, side_px: int = 16, seed: int = 0) -> ToyBatch:
    """Pictures of a figure in one half, named by the caption, in one of two styles, which the caption leaves open.

    Picture i is warm with upright stripes if the last digit of its id is 0, cold with level stripes if it is 1.
    """
    draws = generator(seed, "two styles", 0, "")
    images, captions, ids = [], [], []
    for i in range(count):
        place, kind = int(draws.integers(4)), int(draws.integers(2))
        half = torch.zeros(side_px, side_px)
        rows, cols = slice(None), slice(None)
        part = slice(0, side_px // 2) if place in (0, 2) else slice(side_px // 2, None)
        half[(rows, part) if place < 2 else (part, cols)] = 1
        drift = draws.uniform(-0.1, 0.1, 6).tolist()
        colours = ((0.8, 0.1, -0.6), (0.3, -0.3, -0.8)) if kind == 0 else ((-0.6, 0.1, 0.8), (-0.8, -0.4, 0.2))
        figure, ground = (tuple(c + d for c, d in zip(one, drift, strict=False)) for one in colours)
        style = Look(figure=figure, ground=ground, angle=kind * math.pi / 2, stripes=0.2)
        images.append(((paint(half, style) + 1) * 127.5).round().to(torch.uint8))
        captions.append({"short": PLACES[place]})
        ids.append(f"{seed}-{i}-{kind}")
    return ToyBatch(torch.stack(images), captions, ids)
