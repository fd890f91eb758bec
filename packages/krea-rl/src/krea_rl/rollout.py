"""Draw pictures with noise in the steps, and say how likely each step was.

The stochastic step has the same marginals as the probability flow it replaces (Flow-GRPO, arXiv 2505.05470):

    mean = x - D (v + sigma^2 / (2 t) * e),   std = sigma sqrt(D),   e = x + (1 - t) v,   D = t - s

going from t to s < t. The last step is always taken without noise, so that what a reward sees carries no white noise
of the sampler. There is no guidance here, by intention: one forward pass per step.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from krea_model.flow import timesteps
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.packing import image_mean
from krea_train.random import normals
from torch import Tensor

__all__ = ["Draws", "Rollout", "Sampler", "Step", "kl", "log_prob", "moments", "ode", "rollout", "sigma", "transition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """Whose random numbers: image i of a batch owns those named by (seed, step, ids[i]), whatever lies beside it."""

    seed: int
    step: int
    ids: tuple[int | str, ...]

    def normals(self, stream: str, grids: Grids, features: int) -> Tensor:
        """Standard normal numbers `s f` on the CPU."""
        if len(set(grids)) == 1:
            h, w = grids[0]
            return normals(self.seed, stream, self.step, self.ids, (h * w, features)).flatten(0, 1)
        parts = [
            normals(self.seed, stream, self.step, [name], (h * w, features))[0]
            for name, (h, w) in zip(self.ids, grids, strict=True)
        ]
        return torch.cat(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How pictures are drawn during learning.

    noise: scale a of sigma(t) = a sqrt(t / (1 - t)); 0 gives the flow without noise. mu: timestep shift.
    window: the steps [first, end) that are stochastic, the others follow the flow (MixGRPO, arXiv 2507.21802);
        None means all but the last.
    """

    steps: int = 10
    noise: float = 0.7
    mu: float = 0.0
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{self.steps} sampling steps; at least 1 is needed (10 to 16 suit learning)")
        if self.noise < 0:
            raise ValueError(f"noise scale {self.noise} is negative; use 0 for a flow without noise, 0.7 for learning")
        first, end = self.window or (0, self.steps - 1)
        if not 0 <= first <= end <= self.steps - 1:
            raise ValueError(
                f"window {self.window} does not fit {self.steps} steps: the last step is taken without noise, "
                f"so use 0 <= first <= end <= {self.steps - 1}"
            )

    @property
    def times(self) -> list[float]:
        """steps + 1 times from 1 to 0."""
        return timesteps(self.steps, self.mu)

    @property
    def stochastic(self) -> range:
        """Indices of the steps that draw noise and can be learned from."""
        first, end = self.window or (0, self.steps - 1)
        return range(first, end) if self.noise else range(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One stochastic step as it was drawn: from `x` at time t to `after` at time s, with log-probability `b`."""

    x: Tensor
    after: Tensor
    t: float
    s: float
    sigma: float
    log_prob: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """Pictures of one batch as tokens `s f`, with the stochastic steps that led to them."""

    tokens: Tensor
    cond: Conditioning
    grids: Grids
    steps: tuple[Step, ...]


def sigma(t: float, noise: float, second: float) -> float:
    """Noise per square root of time, a sqrt(t / (1 - t)); at t = 1 the denominator uses the second time."""
    return noise * math.sqrt(t / (1 - (t if t < 1 else second)))


def ode(x: Tensor, v: Tensor, t: float, s: float) -> Tensor:
    """The Euler step of the flow from t to s; for s = 0 it reads out the clean image x - t v."""
    return x - (t - s) * v


def moments(x: Tensor, v: Tensor, t: float, s: float, sigma: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of the stochastic step from t to s."""
    noise = x + (1 - t) * v
    return x - (t - s) * (v + sigma**2 / (2 * t) * noise), sigma * math.sqrt(t - s)


def log_prob(after: Tensor, mean: Tensor, std: float, grids: Grids) -> Tensor:
    """Gaussian log-density per image, `b`: the mean over its elements, not the sum, so that clip ranges do not
    depend on the resolution."""
    constant = math.log(std) + 0.5 * math.log(2 * math.pi)
    return -image_mean((after - mean).square(), grids) / (2 * std**2) - constant


def kl(mean: Tensor, reference: Tensor, std: float, grids: Grids) -> Tensor:
    """KL divergence of two steps of equal std per image, `b`, mean over elements: |m - m_ref|^2 / (2 sigma^2 D).

    std is sigma sqrt(D), so the sum over a path does not depend on the number of steps.
    """
    return image_mean((mean - reference).square(), grids) / (2 * std**2)


def transition(model: Velocity, step: Step, cond: Conditioning, grids: Grids) -> tuple[Tensor, Tensor, float]:
    """Log-probability `b` of a recorded step under `model`, with its mean and std; differentiable."""
    v = velocity_at(model, step.x, step.t, cond, grids)
    mean, std = moments(step.x, v, step.t, step.s, step.sigma)
    return log_prob(step.after, mean, std, grids), mean, std


@torch.no_grad()
def rollout(
    model: Velocity, start: Tensor, cond: Conditioning, grids: Grids, sampler: Sampler, draws: Draws
) -> Rollout:
    """Tokens of noise `s f` -> pictures; the noise of the steps comes from `draws`. States stay in fp32 or better."""
    x = start if start.dtype == torch.float64 else start.float()
    times, steps = sampler.times, []
    for i, (t, s) in enumerate(pairwise(times)):
        v = velocity_at(model, x, t, cond, grids)
        if i not in sampler.stochastic:
            x = ode(x, v, t, s)
            continue
        strength = sigma(t, sampler.noise, times[1])
        mean, std = moments(x, v, t, s, strength)
        after = mean + std * draws.normals(f"step {i}", grids, x.shape[-1]).to(x)
        likely = log_prob(after, mean, std, grids)
        steps.append(Step(x=x, after=after, t=t, s=s, sigma=strength, log_prob=likely))
        x = after
    return Rollout(tokens=x, cond=cond, grids=grids, steps=tuple(steps))


def velocity_at(model: Velocity, x: Tensor, t: float, cond: Conditioning, grids: Grids) -> Tensor:
    """The model's velocity at one time for the whole batch, in the precision of x."""
    return model(x, torch.full((len(grids),), t, device=x.device, dtype=x.dtype), cond, grids).to(x.dtype)
