"""The autoencoders of FLUX.1 and FLUX.2, through diffusers, behind `interfaces.Autoencoder`.

Krea 2 was released with Qwen-Image's; these two are what it is compared with.
"""

from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from krea_model.latents import check_images, check_latents, check_picture, chosen
from krea_model.plain import is_number
from krea_model.tiling import TILING, Tiling, decode

try:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
except ImportError as error:
    raise ImportError('the FLUX autoencoders need diffusers; install "krea-model[vae]"') from error

__all__ = ["Flux1Autoencoder", "Flux2Autoencoder"]


class Flux1Autoencoder:
    """Pictures `b 3 H W` in [-1, 1] <-> latents `b c h w`, shifted and scaled by one number each, 16 channels.

    Any `AutoencoderKL` fits, such as that of Stable Diffusion. tiling: when to decode in tiles; None never does.
    """

    def __init__(self, vae: AutoencoderKL, *, tiling: Tiling | None = TILING) -> None:
        self.vae, self.tiling = vae, tiling
        self._shift, self._scale = vae.config["shift_factor"] or 0.0, vae.config["scaling_factor"]
        if not is_number(self._shift) or not is_number(self._scale, above=0):
            raise ValueError(
                f"shift_factor {self._shift!r} and scaling_factor {self._scale!r} of the autoencoder; both must be "
                "numbers, the second above 0"
            )

    @property
    def compression(self) -> int:
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def channels(self) -> int:
        return self.vae.config["latent_channels"]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move or convert the weights in place."""
        nn.Module.to(self.vae, device=device, dtype=dtype)  # the class hides the signature of its own
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The posterior's mode, or with a generator a draw from it; ValueError if a side does not divide."""
        check_images(images, self.compression)
        posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype), return_dict=False)[0]
        return (chosen(posterior, generator) - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures, clamped to [-1, 1], in fp32; ValueError for latents that hold NaN."""
        check_latents(latents, self.channels)
        raw = latents.to(self.vae.device).float() / self._scale + self._shift
        return check_picture(decode(self._pixels, raw.to(self.vae.dtype), self.compression, self.tiling))

    def _pixels(self, raw: Tensor) -> Tensor:
        read: Any = self.vae.decode  # annotated with a type that no tensor has
        return read(raw, return_dict=False)[0]


class Flux2Autoencoder:
    """Pictures `b 3 H W` in [-1, 1] <-> latents `b c h w`, 32 channels, normalised in 2x2 patches.

    FLUX.2 keeps a mean and a variance for each of the 128 channels of a patch (the batch norm `bn` of its weights).
    They are read when this is made, so make it before converting the weights to a shorter format. A patch is laid out
    as by `packing.pack`, which gives the tokens of FLUX.2. tiling: when to decode in tiles; None never does.
    """

    def __init__(self, vae: AutoencoderKLFlux2, *, tiling: Tiling | None = TILING) -> None:
        mean, variance = vae.bn.running_mean, vae.bn.running_var
        if mean is None or variance is None:
            raise ValueError("this FLUX.2 autoencoder has no latent statistics (bn); load it from a complete folder")
        self.vae, self.tiling = vae, tiling
        self._rows, self._columns = vae.config["patch_size"]
        std = (variance.detach().float() + vae.config["batch_norm_eps"]).sqrt()
        self._mean, self._std = mean.detach().float()[:, None, None].clone(), std[:, None, None]

    @property
    def compression(self) -> int:
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def channels(self) -> int:
        return self.vae.config["latent_channels"]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move or convert the weights in place; the statistics stay in fp32."""
        nn.Module.to(self.vae, device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The posterior's mode, or with a generator a draw from it; ValueError unless sides are whole patches."""
        check_images(images, self.compression * max(self._rows, self._columns))
        posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype), return_dict=False)[0]
        packed = self._pack(chosen(posterior, generator))
        return self._unpack((packed - self._mean.to(packed.device)) / self._std.to(packed.device))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures, clamped to [-1, 1], in fp32; ValueError for latents that hold NaN or half patches."""
        check_latents(latents, self.channels)
        if latents.shape[-2] % self._rows or latents.shape[-1] % self._columns:
            raise ValueError(
                f"latents of {latents.shape[-2]}x{latents.shape[-1]} do not divide into {self._rows}x{self._columns} "
                "patches, over which FLUX.2 normalises; pad or crop them"
            )
        packed = self._pack(latents.to(self.vae.device).float())
        raw = self._unpack(packed * self._std.to(packed.device) + self._mean.to(packed.device)).to(self.vae.dtype)
        return check_picture(decode(self._pixels, raw, self.compression, self.tiling))

    def _pixels(self, raw: Tensor) -> Tensor:
        read: Any = self.vae.decode  # annotated with a type that no tensor has
        return read(raw, return_dict=False)[0]

    def _pack(self, z: Tensor) -> Tensor:
        return rearrange(z, "b c (h p) (w q) -> b (c p q) h w", p=self._rows, q=self._columns)

    def _unpack(self, z: Tensor) -> Tensor:
        return rearrange(z, "b (c p q) h w -> b c (h p) (w q)", p=self._rows, q=self._columns)
