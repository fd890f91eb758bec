"""The autoencoder of Krea 2: Qwen-Image's, through diffusers, behind `interfaces.Autoencoder`."""

from pathlib import Path

import torch
from torch import Tensor, nn

try:
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
except ImportError as error:
    raise ImportError('the Qwen-Image autoencoder needs diffusers; install "krea-model[vae]"') from error

__all__ = ["QwenImageAutoencoder", "load"]


class QwenImageAutoencoder:
    """Pictures `b 3 H W` in [-1, 1] <-> latents `b c h w` normalised by the statistics in the autoencoder's config."""

    def __init__(self, vae: AutoencoderKLQwenImage) -> None:
        self.vae = vae
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None, None]
            for values in (vae.config["latents_mean"], vae.config["latents_std"])
        )

    @property
    def compression(self) -> int:
        return 2 ** len(self.vae.config["temperal_downsample"])

    @property
    def channels(self) -> int:
        return self.vae.config["z_dim"]

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The posterior's mode, or with a generator a draw from it; ValueError if a side does not divide."""
        height, width = images.shape[-2:]
        if height % self.compression or width % self.compression:
            raise ValueError(
                f"image of {height}x{width} pixels is no multiple of {self.compression}; crop or resize it"
            )
        posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype)[:, :, None], return_dict=False)[0]
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return ((latents.float() - self._mean.to(latents.device)) / self._std.to(latents.device))[:, :, 0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures, clamped to [-1, 1], in fp32."""
        device = self.vae.device
        raw = latents.to(device).float()[:, :, None] * self._std.to(device) + self._mean.to(device)
        return self.vae.decode(raw.to(self.vae.dtype), return_dict=False)[0][:, :, 0].float().clamp(-1, 1)


def load(path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> QwenImageAutoencoder:
    """The autoencoder of a diffusers folder: its own, or that in `vae` of a pipeline folder."""
    folder = Path(path)
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (folder / "config.json").is_file():
        raise ValueError(f"{path} holds no autoencoder (config.json and safetensors); give a diffusers folder")
    vae = AutoencoderKLQwenImage.from_pretrained(folder, torch_dtype=dtype)
    nn.Module.to(vae, device)  # the class hides the signature of its own
    return QwenImageAutoencoder(vae.eval())
