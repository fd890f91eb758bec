"""What the autoencoders share: checks of pictures and latents, and how a posterior becomes a latent."""

import math
from typing import Any

import torch
from torch import Tensor

from krea_model.plain import is_number

__all__ = ["check_images", "check_latents", "check_picture", "chosen", "statistics"]


def check_images(images: Tensor, multiple: int) -> None:
    """ValueError unless `images` is `b 3 H W` with sides that are multiples of `multiple` pixels."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images of shape {tuple(images.shape)}; give (batch, 3, height, width) in [-1, 1]")
    height, width = images.shape[-2:]
    if not height or not width or height % multiple or width % multiple:
        raise ValueError(f"image of {height}x{width} pixels is no multiple of {multiple}; crop or resize it")


def check_latents(latents: Tensor, channels: int) -> None:
    """ValueError unless `latents` is `b c h w` of that many channels, and finite: NaN decodes to a black picture."""
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise ValueError(f"latents of shape {tuple(latents.shape)}; give (batch, {channels}, rows, columns)")
    bad = int((~torch.isfinite(latents)).sum())
    if bad:
        raise ValueError(
            f"latents hold NaN or infinity in {bad} of {latents.numel()} values; they were broken before the decoder: "
            "look at the number format of the model (fp16 overflows, bf16 does not) and at adapters"
        )


def check_picture(picture: Tensor) -> Tensor:
    """The decoder's output, clamped to [-1, 1] in fp32; ValueError if it holds NaN though its latents did not."""
    if torch.isnan(picture).any():
        raise ValueError(f"the decoder overflows in {picture.dtype}; load the autoencoder in bfloat16 or float32")
    return picture.float().clamp(-1, 1)


def statistics(values: Any, channels: int, what: str, above: float = -math.inf) -> Tensor:
    """One number for each channel of a latent, as `c 1 1` in fp32; ValueError for others.

    values: what the configuration says; above: what each of them must exceed.
    """
    listed = isinstance(values, list | tuple) and len(values) == channels
    if not listed or not all(is_number(value, above) for value in values):
        raise ValueError(
            f"{what} of the autoencoder is {str(values)[:100]}; it must hold {channels} numbers"
            f"{f' above {above:g}' if above > -math.inf else ''}, one for each channel"
        )
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def chosen(posterior: Any, generator: torch.Generator | None) -> Tensor:
    """The mode of a diffusers posterior, or with a generator a draw from it, in fp32."""
    return (posterior.mode() if generator is None else posterior.sample(generator)).float()
