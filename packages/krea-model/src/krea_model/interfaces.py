"""The shapes that samplers and trainers ask of a model, a text encoder and an autoencoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["Autoencoder", "Conditioning", "Grids", "TextEncoder", "Velocity"]

Grids = Sequence[tuple[int, int]]
"""Token rows and columns of each image of a batch; image i has rows times columns tokens."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Text states of a batch, end to end, without padding.

    states: `t k f`, t the sum of `lengths`, k the taps (layers) of the text encoder, f its width.
    lengths: tokens of each prompt, 0 for one without text.
    """

    states: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.states.ndim != 3 or self.states.shape[0] != sum(self.lengths) or min(self.lengths, default=0) < 0:
            raise ValueError(
                f"text states of shape {tuple(self.states.shape)} do not fit lengths {self.lengths}; "
                "give states as (sum of lengths, taps, width) and no negative length"
            )


class Velocity(Protocol):
    """dx/dt of the probability flow; t runs from 1 (noise) to 0 (image), v = noise - image.

    x: `s f`, the tokens of all images end to end, row-major; t: `b`; returns `s f`.
    """

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids, /) -> Tensor: ...


class TextEncoder(Protocol):
    """Prompts to hidden states of several layers."""

    def __call__(self, prompts: Sequence[str]) -> Conditioning: ...


class Autoencoder(Protocol):
    """Pictures to normalised latents and back."""

    @property
    def compression(self) -> int:
        """Pixels per latent position along one side."""
        ...

    @property
    def channels(self) -> int: ...

    def encode(self, images: Tensor) -> Tensor:
        """images: `b 3 H W` in [-1, 1] -> `b c h w`, mean 0 and variance 1 over the training corpus."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """latents: `b c h w` -> `b 3 H W`, clamped to [-1, 1]."""
        ...
