"""The autoencoder of Krea 2: Qwen-Image's, through diffusers, behind `interfaces.Autoencoder`; and how to load any."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from krea_model.damage import damage_named, read_object
from krea_model.devices import place
from krea_model.inputs import check_dtype
from krea_model.latents import check_images, check_latents, check_picture, chosen, statistics
from krea_model.tiling import TILING, Tiling, decode

try:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
except ImportError as error:
    raise ImportError('the Qwen-Image autoencoder needs diffusers; install "krea-model[vae]"') from error

from krea_model.flux_autoencoder import Flux1Autoencoder, Flux2Autoencoder

__all__ = ["QwenImageAutoencoder", "load"]


class QwenImageAutoencoder:
    """Pictures `b 3 H W` in [-1, 1] <-> latents `b c h w` normalised by the statistics in the autoencoder's config.

    tiling: when to decode in tiles; None never does.
    """

    def __init__(self, vae: AutoencoderKLQwenImage, *, tiling: Tiling | None = TILING) -> None:
        self.vae, self.tiling = vae, tiling
        self._mean = statistics(vae.config["latents_mean"], self.channels, "latents_mean")
        self._std = statistics(vae.config["latents_std"], self.channels, "latents_std", above=0)

    @property
    def compression(self) -> int:
        return 2 ** len(self.vae.config["temperal_downsample"])

    @property
    def channels(self) -> int:
        return self.vae.config["z_dim"]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move or convert the weights in place; the statistics stay in fp32."""
        nn.Module.to(self.vae, device=device, dtype=dtype)  # the class hides the signature of its own
        return self

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The posterior's mode, or with a generator a draw from it; ValueError if a side does not divide."""
        check_images(images, self.compression)
        posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype)[:, :, None], return_dict=False)[0]
        latents = chosen(posterior, generator)[:, :, 0]
        return (latents - self._mean.to(latents.device)) / self._std.to(latents.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures, clamped to [-1, 1], in fp32; ValueError for latents that hold NaN."""
        check_latents(latents, self.channels)
        device = self.vae.device
        raw = latents.to(device).float() * self._std.to(device) + self._mean.to(device)
        return check_picture(decode(self._pixels, raw.to(self.vae.dtype), self.compression, self.tiling))

    def _pixels(self, raw: Tensor) -> Tensor:
        return self.vae.decode(raw[:, :, None], return_dict=False)[0][:, :, 0]


KINDS: dict[str, tuple[Any, Any]] = {
    "AutoencoderKLQwenImage": (AutoencoderKLQwenImage, QwenImageAutoencoder),
    "AutoencoderKLFlux2": (AutoencoderKLFlux2, Flux2Autoencoder),
    "AutoencoderKL": (AutoencoderKL, Flux1Autoencoder),
}


def load(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", *, tiling: Tiling | None = TILING
) -> QwenImageAutoencoder | Flux1Autoencoder | Flux2Autoencoder:
    """The autoencoder of a diffusers folder: its own, or that in `vae` of a pipeline folder.

    Its config says which class; Qwen-Image's, FLUX.1's and FLUX.2's are known. ValueError for any other, for a folder
    without weights and for one with only a part of them.
    """
    check_dtype(dtype)
    folder, found = Path(path), place(device)
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{path} holds no autoencoder (config.json and safetensors); give a diffusers folder")
    kind = read_object(folder / "config.json").get("_class_name")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{folder} holds a {kind!r}; the autoencoders known here are {', '.join(KINDS)}")
    inner, outer = KINDS[kind]
    with damage_named(folder, "autoencoder"):
        vae, info = inner.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )  # in fp32 first: statistics among the weights are not to be rounded
    if info["missing_keys"]:
        raise ValueError(f"{folder} lacks weights, first {min(info['missing_keys'])}; the download is incomplete")
    with damage_named(folder, "autoencoder"):
        autoencoder = outer(vae.eval(), tiling=tiling)
    return autoencoder.to(found, dtype)
