"""Rectified flow: the line from image to noise, its velocity, when to look at it, and the step that adds noise."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from krea_model.interfaces import Grids
from krea_model.packing import image_mean
from krea_model.plain import is_number, is_whole

__all__ = [
    "clean",
    "late",
    "log_prob",
    "logit_normal",
    "mix",
    "shift",
    "shift_mu",
    "stochastic",
    "timesteps",
    "velocity",
]


MOST_MU = 700.0  # e to that is still a number
MOST_STEPS = 10_000


def mix(image: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
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
    if not is_whole(steps, 1) or steps > MOST_STEPS:
        raise ValueError(
            f"{steps!r} sampling steps; give a whole number from 1 to {MOST_STEPS} (52 for Raw, 8 for Turbo)"
        )
    if not is_number(mu) or abs(mu) > MOST_MU:
        raise ValueError(f"mu is {mu!r}; give the shift of the times as a number (0 is none, 1.15 for Turbo)")
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift(u, mu).tolist()


def late(times: Sequence[float], strength: float) -> list[float]:
    """The last part of a schedule, for image-to-image: N - min(int(N strength), N) of its N steps are left out.

    strength lies in (0, 1]: 1 keeps every step, and the smaller it is, the more of the picture stays. The index is that
    of diffusers' image-to-image pipelines. ValueError if no step would be left.
    """
    steps = len(times) - 1
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength}; it must lie above 0 (keep the picture) and be at most 1 (forget it)")
    kept = int(steps * strength)
    if not kept:
        raise ValueError(
            f"strength {strength} leaves none of {steps} steps; use {1 / steps:.2g} or more, or more steps"
        )
    return list(times[steps - kept :])


def logit_normal(uniform: Sequence[float] | Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Uniform numbers in (0, 1) -> logit-normal times (arXiv 2403.03206); stratify the uniforms, not the times."""
    u = torch.as_tensor(uniform, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return torch.sigmoid(mean + std * torch.special.ndtri(u)).float()


def stochastic(
    x: Tensor, v: Tensor, t: Tensor | float, s: Tensor | float, scale: float
) -> tuple[Tensor, Tensor | float]:
    """Mean and standard deviation of a step from t to s < t that adds noise and keeps the marginals.

    It follows the reverse SDE dx = [v + sigma^2 / (2 t) e] dt + sigma dW with e = x + (1 - t) v, the noise in x, and
    sigma = scale sqrt(t / (1 - t)) (Flow-GRPO, arXiv 2505.05470). With the clean estimate c = x - t v held fixed over
    the step, e is an Ornstein-Uhlenbeck process, so the step has a closed form and needs no care at the ends:

        mean = (1 - s) c + s r e,   std = s sqrt(1 - r^2),   r = (s (1 - t) / (t (1 - s)))^(scale^2 / 2)

    Whatever its size the step leaves the noise at level s, which Euler-Maruyama does not, and the last one (s = 0)
    reads out c without noise. scale 0 is the Euler step of the flow. Unlike in CPS (arXiv 2509.05952) r tends to 1 with
    small steps, so that the marginals become exact. t and s are numbers, or columns `s 1` of one value per token.
    """
    kept = (s * (1 - t) / (t * (1 - s))) ** (scale**2 / 2)
    noise = x + (1 - t) * v
    return (1 - s) * clean(x, v, t) + s * kept * noise, s * (1 - kept**2) ** 0.5


def log_prob(after: Tensor, mean: Tensor, std: Tensor | float, grids: Grids) -> Tensor:
    """Gaussian log-density of a step per image, `b`: the mean over its elements, so that no clip range depends on size.

    ValueError for a step without noise, which has no density.
    """
    std = torch.as_tensor(std, dtype=after.dtype, device=after.device)
    if not bool((std > 0).all()):
        raise ValueError("a step without noise has no density; leave out steps to time 0 and steps of scale 0")
    return image_mean(-((after - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi), grids)
