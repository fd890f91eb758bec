"""Rectified flow: the line from image to noise, its velocity, and when to look at it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["clean", "logit_normal", "mix", "shift", "shift_mu", "timesteps", "velocity"]


def mix(image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point at time t of the line from image (t = 0) to noise (t = 1); t broadcasts."""
    return (1 - t) * image + t * noise


def velocity(image: Tensor, noise: Tensor) -> Tensor:
    """dx/dt of that line, the training target: noise - image."""
    return noise - image


def clean(x: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """The image that velocity v at (x, t) points to: x - t v."""
    return x - t * v


def shift(t: Tensor, mu: float) -> Tensor:
    """Move times toward noise: e^mu t / (1 + (e^mu - 1) t); in logit space an addition of mu."""
    alpha = math.exp(mu)
    return alpha * t / (1 + (alpha - 1) * t)


def shift_mu(tokens: int) -> float:
    """The released model's mu for an image of that many tokens: 0.5 at 256, 1.15 at 6400, linear, not clamped."""
    return 0.5 + (1.15 - 0.5) * (tokens - 256) / (6400 - 256)


def timesteps(steps: int, mu: float) -> list[float]:
    """steps + 1 times from 1 to 0, shifted by mu."""
    if steps < 1:
        raise ValueError(f"{steps} sampling steps; at least 1 is needed (52 for Raw, 8 for Turbo)")
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift(u, mu).tolist()


def logit_normal(uniform: Sequence[float] | Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Uniform numbers in (0, 1) -> logit-normal times (arXiv 2403.03206); stratify the uniforms, not the times."""
    u = torch.as_tensor(uniform, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return torch.sigmoid(mean + std * torch.special.ndtri(u)).float()
