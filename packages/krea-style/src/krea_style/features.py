"""Frozen picture features that need no download: colour, oriented texture, and texture of texture.

A stand-in for the intermediate layers of an image encoder, with the same shape: one `b s f` tensor per depth. The
second order is a small wavelet scattering (arXiv 1203.1513).
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OPPONENT", "WIDTHS", "gabor", "scattering"]

SIDE_PX = 64
ANGLES = 4
WAVELENGTHS_PX = (4.0, 8.0)
BANK = ANGLES * len(WAVELENGTHS_PX)
WIDTHS = (12, 3 * BANK, BANK * ANGLES)
"""Width of each depth that `scattering` returns."""

OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
"""Light, red against green, yellow against blue."""


@lru_cache(maxsize=8)
def gabor(angles: int, wavelengths_px: tuple[float, ...]) -> Tensor:
    """Complex oriented filters as pairs (even, odd), `2n 1 k k`: zero mean, unit size."""
    side = 2 * math.ceil(max(wavelengths_px)) + 1
    y, x = torch.meshgrid(*(torch.arange(side) - side // 2,) * 2, indexing="ij")
    filters = []
    for wavelength in wavelengths_px:
        window = torch.exp(-(x**2 + y**2) / (2 * (0.5 * wavelength) ** 2))
        for i in range(angles):
            phase = 2 * math.pi / wavelength * (x * math.cos(math.pi * i / angles) + y * math.sin(math.pi * i / angles))
            for wave in (phase.cos(), phase.sin()):
                kernel = window * (wave - (window * wave).sum() / window.sum())
                filters.append(kernel / kernel.norm())
    return torch.stack(filters)[:, None]


def scattering(images: Tensor) -> list[Tensor]:
    """images: `b 3 H W` in [-1, 1] -> three depths `b s f` with f as in `WIDTHS`; tokens are places, row-major."""
    x = F.interpolate(images.float(), (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
    opponent = torch.einsum("oc,bchw->bohw", torch.tensor(OPPONENT, device=x.device), x)
    first = energy(opponent, gabor(ANGLES, WAVELENGTHS_PX).to(x.device))
    fine = first.unflatten(1, (3, BANK))[:, 0]
    second = energy(F.avg_pool2d(fine, 2), gabor(ANGLES, WAVELENGTHS_PX[-1:]).to(x.device))
    colour = torch.cat([x, opponent], 1)
    mean, square = (F.avg_pool2d(part, 8) for part in (colour, colour.square()))
    spread = (square - mean.square()).clamp(min=0).sqrt()
    depths = (torch.cat([mean, spread], 1), F.avg_pool2d(first, 8), F.avg_pool2d(second, 8))
    return [depth.flatten(2).transpose(1, 2) for depth in depths]


def energy(channels: Tensor, bank: Tensor) -> Tensor:
    """Size of each complex filter's answer on each channel, `b c h w` -> `b c*n h w`."""
    b, c, h, w = channels.shape
    pad = bank.shape[-1] // 2
    padded = F.pad(channels.reshape(b * c, 1, h, w), (pad,) * 4, mode="reflect")
    answers = F.conv2d(padded, bank).unflatten(1, (-1, 2))
    return answers.square().sum(2).add(1e-12).sqrt().reshape(b, -1, h, w)
