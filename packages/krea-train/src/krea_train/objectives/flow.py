"""The rectified-flow objective: noise an image to a random time, predict the velocity, average per image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from krea_model.flow import logit_normal, mix, shift, velocity
from krea_model.interfaces import Conditioning, Grids
from krea_model.packing import image_mean, level, pack, per_token
from torch import Tensor, nn

from krea_train.interfaces import Batch
from krea_train.random import normals, stratified, uniforms

__all__ = ["Example", "FlowMatching", "by_time", "captions", "times"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One noised batch: x and target `s f`, t `b`, text and token grids, as `krea_model.Velocity` takes them."""

    x: Tensor
    target: Tensor
    t: Tensor
    cond: Conditioning
    grids: Grids


def captions(batch: Batch, mix: Mapping[str, float], drop: float, seed: int, step: int) -> list[str]:
    """One caption per image: a length drawn by `mix` among those it has, or with probability `drop` the empty prompt.

    Source: Krea 2 technical report, section "Captioning". Raises ValueError for an image with no length of the mix.
    """
    which = uniforms(seed, "caption", step, batch.ids).tolist()
    empty = uniforms(seed, "drop", step, batch.ids).tolist()
    return [
        "" if u_empty < drop else _caption(options, mix, u, sample)
        for options, u, u_empty, sample in zip(batch.captions, which, empty, batch.ids, strict=True)
    ]


def _caption(options: Mapping[str, str], mix: Mapping[str, float], u: float, sample: str) -> str:
    lengths = [(length, mix[length]) for length in sorted(mix) if mix[length] > 0 and options.get(length)]
    if not lengths:
        raise ValueError(
            f"image {sample!r} has captions {sorted(options)}, the mix asks for {sorted(mix)}; add one of them"
        )
    rest = u * sum(weight for _, weight in lengths)
    for length, weight in lengths:
        rest -= weight
        if rest < 0:
            return options[length]
    return options[lengths[-1][0]]


def times(seed: int, step: int, ids: Sequence[str], *, mu: float, rank: int = 0, ranks: int = 1) -> Tensor:
    """Stratified logit-normal times shifted by mu, `b`: the global batch hits each quantile slice once.

    Shifting by mu is adding mu to the logit (arXiv 2403.03206); each rank holds an equal share of the batch.
    """
    u = stratified(seed, "time", step, ids, total=len(ids) * ranks, offset=len(ids) * rank)
    return shift(logit_normal(u), mu)


def by_time(losses: Tensor, t: Tensor, bins: int) -> dict[str, Tensor]:
    """Mean loss of the images in each of `bins` equal slices of time, NaN where there is none; both `b`."""
    slices = (t * bins).long().clamp(max=bins - 1)
    sums, counts = torch.zeros(2, bins, device=losses.device).unbind()
    means = sums.index_add(0, slices, losses) / counts.index_add(0, slices, torch.ones_like(losses))
    return {f"loss_t{i / bins:.2f}": mean for i, mean in enumerate(means.unbind())}


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowMatching:
    """Mean over images of the mean squared velocity error, in fp32 and unweighted; an `Objective`.

    latents: (batch, step) -> `b c h w` or a list of `c h w`, on the model's device. text: prompts -> states, likewise;
    it gets the empty prompt for dropped captions. mu: shift of the times, a property of the stage's resolution.
    patch: latent positions per token side. block: tokens of a batch are rounded up to a multiple of this, see
    `krea_model.packing.level`; the model then gets one more sample, without image.
    rank, ranks: this process's share of the global batch.
    """

    latents: Callable[[Batch, int], Tensor | Sequence[Tensor]]
    text: Callable[[Sequence[str]], Conditioning]
    seed: int
    mu: float = 0.0
    patch: int = 2
    caption_mix: Mapping[str, float] = field(default_factory=lambda: {"short": 1.0, "medium": 1.0, "long": 1.0})
    drop: float = 0.1
    bins: int = 4
    block: int = 1
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1 or min(self.caption_mix.values(), default=-1) < 0:
            raise ValueError(f"caption drop {self.drop} and mix {dict(self.caption_mix)}: use shares of at least 0")

    def example(self, batch: Batch, step: int) -> Example:
        """Noise the batch; the same (seed, step, id) always gives the same noise and caption."""
        latents = self.latents(batch, step)
        draws = [normals(self.seed, "noise", step, [i], z.shape)[0] for i, z in zip(batch.ids, latents, strict=True)]
        image, grids = pack(latents, self.patch)
        device = image.device
        noise = pack(draws, self.patch)[0].to(device, non_blocking=True)
        t = times(self.seed, step, batch.ids, mu=self.mu, rank=self.rank, ranks=self.ranks)
        t = t.to(device, non_blocking=True)
        cond = self.text(captions(batch, self.caption_mix, self.drop, self.seed, step))
        x = mix(image.float(), noise, per_token(t, grids))
        return Example(x=x, target=velocity(image.float(), noise), t=t, cond=cond, grids=grids)

    def loss(self, prediction: Tensor, example: Example) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a predicted velocity `s f`."""
        losses = image_mean((prediction.float() - example.target).square(), example.grids)
        loss = losses.mean()
        return loss, {"loss": loss.detach(), **by_time(losses.detach(), example.t, self.bins)}

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        example = self.example(batch, step)
        return self.loss(model(example.x, *level(example.t, example.cond, example.grids, self.block)), example)
