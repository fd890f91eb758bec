"""Flows with a known answer and rewards with a known optimum, for tests and examples."""

import math
from collections.abc import Sequence

import torch
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.packing import per_token
from torch import Tensor, nn

__all__ = ["Brightness", "LinearHead", "NearPoint", "PlainText", "Ring", "as_points", "points"]


def points(count: int) -> list[tuple[int, int]]:
    """Grids of `count` images of one token each: the flat layout of a flow on points of the plane."""
    return [(1, 1)] * count


def as_points(tokens: Tensor, grids: Grids) -> Tensor:
    """The decoder of the plane: tokens `b 2` -> pictures `b 2 1 1`."""
    return tokens.reshape(len(grids), -1, 1, 1)


class PlainText:
    """A text encoder without content: one zero token per prompt."""

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(torch.zeros(len(prompts), 1, 1), (1,) * len(prompts))


class Ring:
    """Eight Gaussian modes on a circle with their exact velocity: a `Velocity` on points, `b 2`."""

    def __init__(self, radius: float = 2.0, std: float = 0.15, weights: Sequence[float] = (4, 1, 1, 1, 4, 1, 1, 1)):
        angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
        self.std = std
        self.centres = (radius * torch.stack([angles.cos(), angles.sin()], 1)).float()
        self.weights = torch.tensor(weights, dtype=torch.float32) / sum(weights)

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        times = t.to(x.dtype)[:, None]
        var = (1 - times) ** 2 * self.std**2 + times**2
        away = x[:, None] - (1 - times)[..., None] * self.centres
        share = torch.softmax(self.weights.log() - away.square().sum(-1) / (2 * var), 1)
        mean = self.centres + ((1 - times) * self.std**2 / var)[..., None] * away
        return (x - (share[..., None] * mean).sum(1)) / times

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Points of the mixture, `count 2`."""
        modes = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.centres[modes] + self.std * torch.randn(count, 2, generator=generator)


class LinearHead(nn.Module):
    """A fixed velocity plus a trainable linear map of random Fourier features of (x, t); starts equal to `base`."""

    def __init__(self, base: Velocity, features: int = 192, seed: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base = base
        waves = torch.randn(3, features, generator=generator) * torch.tensor([[1.2], [1.2], [4.0]])
        self.register_buffer("waves", waves)
        self.register_buffer("phase", 2 * math.pi * torch.rand(features, generator=generator))
        self.head = nn.Parameter(torch.zeros(features, 2))

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        """x: `b 2`, one token per image; t: `b`."""
        inputs = torch.cat([x, per_token(t, grids).to(x.dtype)], -1)
        features = math.sqrt(2 / len(self.head)) * torch.cos(
            inputs @ self.get_buffer("waves") + self.get_buffer("phase")
        )
        return self.base(x, t, cond, grids) + features @ self.head


class NearPoint:
    """exp(-distance^2 / (2 width^2)) to one point of the plane: optimum 1, at that point."""

    def __init__(self, x: float, y: float, width: float = 1.0) -> None:
        self.point, self.width = (x, y), width

    def __call__(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        away = images.flatten(1).detach() - torch.tensor(self.point)
        return torch.exp(-away.square().sum(1) / (2 * self.width**2))


class Brightness:
    """Mean of all pixels from 0 (black) to 1 (white): optimum 1, at a white picture."""

    def __call__(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        return (images.detach().float().flatten(1).mean(1).clamp(-1, 1) + 1) / 2
