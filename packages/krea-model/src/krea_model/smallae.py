"""A small convolutional autoencoder, made to be trained in a minute on a CPU: four pixels to one latent position."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Sizes", "SmallAutoencoder", "reconstruction_error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """channels: of the latent; width: of the convolutions; depth: residual blocks of the decoder."""

    channels: int = 8
    width: int = 64
    depth: int = 3

    def __post_init__(self) -> None:
        if min(self.channels, self.width, self.depth) < 1:
            raise ValueError(f"autoencoder sizes {asdict(self)}; each must be at least 1")


class Residual(nn.Module):
    """x plus two convolutions of it, with a learned weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.weight = nn.Parameter(torch.full((1,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * self.inner(x)


class SmallAutoencoder(nn.Module):
    """An `interfaces.Autoencoder`; the running statistics of `norm` are the latent statistics of the corpus."""

    compression = 4

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        w, c, p = sizes.width, sizes.channels, self.compression
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(p), nn.Conv2d(3 * p * p, w, 3, padding=1), Residual(w), nn.Conv2d(w, c, 1)
        )
        self.norm = nn.BatchNorm2d(c, affine=False, momentum=0.02)
        self.decoder = nn.Sequential(
            nn.Conv2d(c, w, 3, padding=1),
            *(Residual(w) for _ in range(sizes.depth)),
            nn.Conv2d(w, 3 * p * p, 3, padding=1),
            nn.PixelShuffle(p),
        )

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.sizes.channels

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Reconstruction `b 3 H W` of images in [-1, 1]; `noise`, `b c h w`, is added to the latent in training."""
        z = self.norm(self.encoder(images).float())
        return self.decoder(z if noise is None else z + noise)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """`b 3 H W` in [-1, 1] -> `b c h w`; sides must be multiples of 4."""
        if images.shape[-1] % self.compression or images.shape[-2] % self.compression:
            raise ValueError(f"a picture of {images.shape[-1]}x{images.shape[-2]} pixels; sides must be multiples of 4")
        return self.norm(self.encoder(images.to(self.norm.running_mean)).float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """`b c h w` -> `b 3 H W`, clamped to [-1, 1]."""
        return self.decoder(latents.to(self.norm.running_mean)).clamp(-1, 1)

    def describe(self) -> dict[str, Any]:
        """Sizes as JSON, for a manifest."""
        return asdict(self.sizes)


def reconstruction_error(output: Tensor, target: Tensor) -> Tensor:
    """L1 + L2/2 + half the L1 of both image gradients: flat areas stay flat and edges stay where they are."""
    d = output.float() - target
    edges = d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
    return F.l1_loss(output.float(), target) + 0.5 * d.square().mean() + 0.5 * edges
