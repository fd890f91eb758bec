"""How much of the reference's style arrived, and how much of its content came along uninvited.

A plain similarity between output and reference cannot tell the two apart: on synthetic pictures with known factors it
calls perfect style transfer a leak of 0.7. So content is measured by what palette and texture do not change, the
layout, and style by what layout does not change, palette and texture; both are put on a scale on which the picture
without a reference scores 0 and a copy of the reference scores 1. `tests/test_leakage.py` is the calibration.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from krea_style.features import OPPONENT

__all__ = ["Measure", "layout", "layout_similarity", "measure", "palette", "style_similarity", "texture"]

SIDE_PX = 64
CELLS = 12
QUANTILES = 16
FAINT = 0.05**2 / 2 * 0.375**2 * SIDE_PX**4  # Parseval, with the mean square of the Hann window along each side


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """Means over the pictures; 0 is the picture without a reference, 1 a copy of the reference."""

    adherence: float
    leakage: float


def layout(images: Tensor) -> Tensor:
    """Where things are, whatever their colours: the first colour component of a coarse picture, `b s`, unit size.

    images: `b 3 H W` in [-1, 1]. Its sign is arbitrary. Low-pass before the component is sought, or strong texture
    would choose it.
    """
    coarse = F.adaptive_avg_pool2d(_sized(images), CELLS).flatten(2).double()
    coarse = coarse - coarse.mean(2, keepdim=True)
    _, vectors = torch.linalg.eigh(coarse @ coarse.transpose(1, 2))
    return F.normalize((vectors[:, :, -1:] * coarse).sum(1), dim=1, eps=1e-9).float()


def layout_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Agreement of two layouts from 0 to 1, `b`; light on dark equals dark on light."""
    return (layout(a) * layout(b)).sum(1).abs()


def palette(images: Tensor) -> Tensor:
    """Which colours occur and how often, wherever: quantiles along seven directions of colour, `b f`."""
    directions = torch.tensor([*OPPONENT, (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0.5, 0.0, -0.5)])
    along = torch.einsum("dc,bcs->bds", directions.to(images.device), _sized(images).flatten(2))
    levels = (torch.arange(QUANTILES, device=images.device) + 0.5) / QUANTILES
    return torch.quantile(along, levels, dim=2).permute(1, 2, 0).flatten(1)


def texture(images: Tensor) -> Tensor:
    """Which scales and angles fine structure has, wherever: shares of the power spectrum, `b f`, that sum to 1.

    Shares, because the edges of things spread a little power everywhere; one share is the power of faint stripes
    (0.05), so that a picture without texture differs from one with it.
    """
    light = _sized(images).mean(1)
    light = light - light.mean((1, 2), keepdim=True)
    window = torch.hann_window(SIDE_PX, periodic=False, device=images.device)
    power = torch.fft.fft2(light * window * window[:, None]).abs().square()
    rows, cols = torch.meshgrid(*(torch.fft.fftfreq(SIDE_PX, 1 / SIDE_PX, device=images.device),) * 2, indexing="ij")
    radius, angle = torch.hypot(rows, cols), torch.atan2(rows, cols) % torch.pi
    scale = torch.bucketize(radius, torch.tensor([6.0, 9.0, 13.0, 19.0, 28.0], device=images.device))
    sector = ((angle / torch.pi * 8).round().long()) % 8
    bins = torch.where(scale > 0, (scale - 1) * 8 + sector, torch.full_like(scale, 40))  # the coarse rest is layout
    sums = torch.zeros(len(images), 41, device=images.device).index_add(1, bins.flatten(), power.flatten(1))
    sums[:, 40] = FAINT
    return sums / sums.sum(1, keepdim=True)


def style_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Agreement of palette and of texture from 0 to 1, `b`: the mean of the two."""
    colours = torch.exp(-(palette(a) - palette(b)).abs().mean(1) / 0.2)
    strokes = torch.minimum(texture(a), texture(b)).sum(1)
    return (colours + strokes) / 2


def measure(outputs: Tensor, references: Tensor, plain: Tensor) -> Measure:
    """Adherence and leakage of pictures made with references against those made without; each `b 3 H W` in [-1, 1].

    Per picture, similarity to the reference beyond that of the plain picture; then one ratio of means, because a
    mean of ratios is at the mercy of pictures whose plain version happens to resemble the reference.
    """
    if not outputs.shape == references.shape == plain.shape or outputs.ndim != 4:
        raise ValueError(
            f"pictures of shapes {tuple(outputs.shape)}, {tuple(references.shape)} and {tuple(plain.shape)}; "
            "give three batches (pictures, 3, height, width) of one shape"
        )
    found = []
    for similarity in (style_similarity, layout_similarity):
        base = similarity(plain, references)
        found.append(float((similarity(outputs, references) - base).mean() / (1 - base).mean().clamp(min=1e-6)))
    return Measure(adherence=found[0], leakage=found[1])


def _sized(images: Tensor) -> Tensor:
    return F.interpolate(images.float(), (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
