"""Noise in, latents out: Euler steps along the model's velocity, with or without guidance."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from krea_model.flow import clean, timesteps
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.packing import pack

__all__ = ["euler", "guided", "noise", "sample"]


def noise(
    seeds: Sequence[int], grids: Grids, features: int, device: torch.device | str = "cpu", *, patch: int = 2
) -> Tensor:
    """Initial noise `s f`, drawn per image from its own seed: an image does not depend on its batch.

    It is drawn in fp32 as a latent `c h w` and then packed, so that the same generator gives diffusers' noise.
    """
    if features % patch**2:
        raise ValueError(f"{features} features do not divide into patches of {patch}x{patch}; pass the model's patch")
    latents = []
    for seed, (h, w) in zip(seeds, grids, strict=True):
        generator = torch.Generator().manual_seed(seed)
        latents.append(torch.randn(features // patch**2, h * patch, w * patch, generator=generator))
    return pack(latents, patch)[0].to(device)


def guided(model: Velocity, cond: Conditioning, uncond: Conditioning | None, guidance: float) -> Velocity:
    """cond + guidance (cond - uncond), the released convention: guidance 0 means none and costs one forward."""
    if guidance == 0 or uncond is None:
        return lambda x, t, _, grids: model(x, t, cond, grids)
    both = Conditioning(torch.cat([cond.states, uncond.states]), (*cond.lengths, *uncond.lengths))

    def velocity(x: Tensor, t: Tensor, _: Conditioning, grids: Grids) -> Tensor:
        v, v0 = model(torch.cat([x, x]), torch.cat([t, t]), both, [*grids, *grids]).chunk(2)
        return v + guidance * (v - v0)

    return velocity


def euler(
    velocity: Velocity,
    x: Tensor,
    cond: Conditioning,
    grids: Grids,
    times: Sequence[float],
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Integrate from times[0] to times[-1]; `on_step` gets the step and the current estimate of the clean tokens."""
    for step, (t, after) in enumerate(pairwise(times)):
        v = velocity(x, torch.full((len(grids),), t, device=x.device), cond, grids)
        if on_step is not None:
            on_step(step, clean(x, v, t))
        x = x + (after - t) * v
    return x


@torch.inference_mode()
def sample(
    model: Velocity,
    x: Tensor,
    cond: Conditioning,
    grids: Grids,
    *,
    steps: int,
    mu: float,
    guidance: float = 0.0,
    uncond: Conditioning | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Tokens of noise -> tokens of images. Guidance needs `uncond`, the empty prompt encoded once per image."""
    if guidance and uncond is None:
        raise ValueError(f"guidance {guidance} needs the encoded empty prompt; pass uncond, or guidance 0")
    return euler(guided(model, cond, uncond, guidance), x, cond, grids, timesteps(steps, mu), on_step)
