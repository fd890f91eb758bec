"""The objective that trains the demo's autoencoder: reconstruct slightly moved pictures from slightly noisy latents."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from krea_model.smallae import SmallAutoencoder, reconstruction_error
from torch import Tensor, nn

from krea_train.interfaces import Batch
from krea_train.random import generator

__all__ = ["Reconstruction"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """An `Objective` for a `SmallAutoencoder`.

    noise: standard deviation added to the latent, so that the decoder forgives a sampler's small errors.
    halved: share of steps at half the side, for the stages that train there. move_px: largest shift of a batch.
    """

    seed: int
    noise: float = 0.1
    halved: float = 0.25
    move_px: int = 3

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(model, SmallAutoencoder):
            raise ValueError(f"a {type(model).__name__} is no SmallAutoencoder, the one model that this trains")
        draw = generator(self.seed, "reconstruct", step)
        images = batch.images.float() / 127.5 - 1
        if torch.rand((), generator=draw) < self.halved:
            images = F.avg_pool2d(images, 2)
        if torch.rand((), generator=draw) < 0.5:
            images = images.flip(-1)
        shifts = torch.randint(-self.move_px, self.move_px + 1, (2,), generator=draw).tolist()
        images = images.roll(shifts, (2, 3)).contiguous(memory_format=torch.channels_last)
        b, _, h, w = images.shape
        side = (b, model.channels, h // model.compression, w // model.compression)
        output = model(images, self.noise * torch.randn(side, generator=draw))
        loss = reconstruction_error(output, images)
        mse = (output.detach().float() - images).square().mean() / 4
        return loss, {"loss": loss.detach(), "psnr_db": -10 * mse.log10()}
