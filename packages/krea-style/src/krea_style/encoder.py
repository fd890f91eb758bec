"""Frozen features of a picture at several depths, summed up in a few style tokens.

The resampler (a small Perceiver, arXiv 2103.03206) is given no positions: with features that hold none either, it can
say which colours and strokes a picture has, but not where they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Features", "ImageStyleEncoder", "Resampler", "StyleConfig"]

Features = Callable[[Tensor], Sequence[Tensor]]
"""Pictures `b 3 H W` in [-1, 1] -> one `b s f` tensor per depth, f as in `StyleConfig.levels`; never trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleConfig:
    """Sizes of a style module.

    levels: width of the features at each depth. tokens, features: number and width of the style tokens of a picture.
    width: inner width of the attention from image to style, heads of it and of the resampler; layers of the resampler.
    """

    levels: tuple[int, ...]
    tokens: int = 8
    features: int = 64
    width: int = 64
    heads: int = 4
    layers: int = 2

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1 or self.tokens < 1 or self.layers < 1:
            raise ValueError(f"levels, tokens and layers must be at least 1: {self}")
        if self.features % self.heads or self.width % self.heads:
            raise ValueError(f"features {self.features} and width {self.width} do not divide by {self.heads} heads")


class Cross(nn.Module):
    """Attention of queries `b m f` over a source `b s f`, then a small MLP, both added."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.prenorm, self.postnorm = nn.RMSNorm(features, eps=1e-5), nn.RMSNorm(features, eps=1e-5)
        self.wq, self.wo = nn.Linear(features, features), nn.Linear(features, features)
        self.wkv = nn.Linear(features, 2 * features)
        self.mlp = nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features))

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q = self.wq(self.prenorm(x))
        k, v = self.wkv(source).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        x = x + self.wo(out.transpose(1, 2).flatten(2))
        return x + self.mlp(self.postnorm(x))


class Resampler(nn.Module):
    """Features of several depths -> style tokens `b m f`."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        f = config.features
        self.levels = config.levels
        self.inputs = nn.ModuleList(nn.Linear(width, f) for width in config.levels)
        self.norms = nn.ModuleList(nn.LayerNorm(f) for _ in config.levels)
        self.queries = nn.Parameter(0.1 * torch.randn(config.tokens, f))  # small, or tokens start nearly alike
        self.blocks = nn.ModuleList(Cross(f, config.heads) for _ in range(config.layers))
        self.norm = nn.RMSNorm(f, eps=1e-5)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """features: one `b s f` tensor per depth; ValueError if the widths are not those of the configuration."""
        widths = tuple(depth.shape[-1] for depth in features)
        if widths != self.levels:
            raise ValueError(f"features of widths {widths}; this style module was built for {self.levels}")
        parts = zip(self.inputs, self.norms, features, strict=True)
        source = torch.cat([norm(project(depth.to(self.queries.dtype))) for project, norm, depth in parts], 1)
        x = self.queries.expand(len(source), -1, -1)
        for block in self.blocks:
            x = block(x, source)
        return self.norm(x)


@dataclass(frozen=True, slots=True)
class ImageStyleEncoder:
    """A `StyleEncoder`: frozen features, then the trained resampler."""

    features: Features
    resampler: Resampler

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            depths = self.features(images)
        return self.resampler(depths)
