"""Small stand-ins that fit together: a random model, a text encoder and an autoencoder, for anybody's tests."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krea_model.configs import Config, tiny
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT

__all__ = ["FakeAutoencoder", "FakeTextEncoder", "fill", "tiny_model"]


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Seeded normal weights for every parameter, none of them zero, so that every path through the model matters.

    Matrices have variance 1 / fan-in, biases a deviation of 0.05, norm scales and modulation tables one of 0.2.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            std = 0.05 if p.ndim == 1 else 1 / math.sqrt(p.shape[1])
            if name.endswith((".scale", ".lin")):
                std = 0.2
            p.copy_(std * torch.randn(p.shape, generator=generator))
    return model


def tiny_model(seed: int = 0, config: Config | None = None) -> MMDiT:
    """A two-block model with seeded random weights that fits `FakeTextEncoder()` and `FakeAutoencoder()`."""
    model = MMDiT(config or replace(tiny(), channels=FakeAutoencoder().channels))
    fill(model, seed)
    return model.eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeTextEncoder:
    """One token per word and one for the end; a word's states `k f` are normal numbers drawn from its hash."""

    taps: int = 3
    width: int = 32

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        words = [[*prompt.split(), "</s>"] for prompt in prompts]
        states = torch.stack([self._word(word) for prompt in words for word in prompt])
        return Conditioning(states, tuple(len(prompt) for prompt in words))

    def _word(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
        return torch.randn(self.taps, self.width, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeAutoencoder:
    """The pixels of each square patch become channels: an orthogonal map that decodes bit for bit."""

    compression: int = 4

    @property
    def channels(self) -> int:
        return 3 * self.compression**2

    def encode(self, images: Tensor) -> Tensor:
        """images: `b 3 H W` in [-1, 1] -> `b c h w`; ValueError if a side does not divide."""
        if images.shape[-2] % self.compression or images.shape[-1] % self.compression:
            raise ValueError(
                f"image of {images.shape[-2]}x{images.shape[-1]} pixels does not divide by {self.compression}; "
                "crop or resize it"
            )
        return F.pixel_unshuffle(images, self.compression)

    def decode(self, latents: Tensor) -> Tensor:
        """latents: `b c h w` -> `b 3 H W`, clamped to [-1, 1]."""
        return F.pixel_shuffle(latents, self.compression).clamp(-1, 1)
