"""Alignment of one block with a frozen image encoder, for the first epoch only (iREPA, arXiv 2512.10794)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from krea_model.mmdit import MMDiT, image_tokens
from krea_model.packing import unpack
from torch import Tensor, nn

from krea_train.interfaces import Batch
from krea_train.objectives.flow import FlowMatching

__all__ = ["Alignment", "attach", "detach", "spatial_norm"]

NAME = "align"


def attach(model: MMDiT, width: int) -> None:
    """Give the model the projector, a 3x3 convolution to the encoder's width, before the optimizer is built."""
    model.add_module(NAME, nn.Conv2d(model.config.features, width, 3, padding=1))


def detach(model: nn.Module) -> str:
    """Take the projector away again; returns the prefix that `Optimizer.drop` and `Average.drop` must forget."""
    delattr(model, NAME)
    return f"{NAME}."


def spatial_norm(features: Tensor, gamma: float) -> Tensor:
    """(y - gamma mean) / (std + 1e-6) per channel over the positions; `D h w`. gamma is one number, std unbiased."""
    mean, std = features.mean((-2, -1), keepdim=True), features.std((-2, -1), keepdim=True)
    return (features - gamma * mean) / (std + 1e-6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """The flow objective plus the negative cosine between projected tokens of a block and normalised features.

    features: batch -> `D h w` per image (or `b D h w`), from a frozen encoder, at any grid; depth counts blocks from 1.
    """

    flow: FlowMatching
    features: Callable[[Batch], Sequence[Tensor] | Tensor]
    depth: int = 8
    weight: float = 1.0
    gamma: float = 0.6

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(model, MMDiT) or not hasattr(model, NAME) or not 1 <= self.depth <= len(model.blocks):
            raise ValueError(
                f"alignment at block {self.depth} needs an MMDiT that is as deep and has its projector; call attach"
            )
        example = self.flow.example(batch, step)
        found: list[Tensor] = []

        def keep(_: nn.Module, __: object, out: Tensor) -> None:
            found.append(out)

        hook = model.blocks[self.depth - 1].register_forward_hook(keep)
        try:
            prediction = model(example.x, example.t, example.cond, example.grids)
        finally:
            hook.remove()
        loss, metrics = self.flow.loss(prediction, example)
        tokens = image_tokens(found[0], example.cond.lengths, [h * w for h, w in example.grids])
        maps = unpack(tokens, example.grids, patch=1)
        similarity = self._similarity(getattr(model, NAME), maps, self.features(batch))
        return loss - self.weight * similarity, metrics | {"alignment": similarity.detach()}

    def _similarity(self, projector: nn.Module, maps: Sequence[Tensor], features: Sequence[Tensor] | Tensor) -> Tensor:
        """Mean cosine over the tokens of each image, then over images; images of one grid go through together."""
        shapes = sorted({tuple(z.shape[-2:]) for z in maps})
        means = []
        for shape in shapes:
            rows = [i for i, z in enumerate(maps) if tuple(z.shape[-2:]) == shape]
            with torch.no_grad():
                target = torch.stack([self._target(features[i], shape) for i in rows])
            projected = projector(torch.stack([maps[i] for i in rows]))
            means.append(F.cosine_similarity(projected.float(), target, dim=1).mean((-2, -1)))
        return torch.cat(means).mean()

    def _target(self, features: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Normalised features `D h w` on the token grid."""
        target = spatial_norm(features.float(), self.gamma)
        if target.shape[-2:] == shape:
            return target
        return F.interpolate(target[None], size=shape, mode="bilinear", align_corners=False, antialias=True)[0]
