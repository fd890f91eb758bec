"""Noise in, latents out: steps along the model's velocity, with or without guidance, with or without added noise."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from krea_model.devices import place
from krea_model.flow import clean, late, mix, shift_mu, stochastic, timesteps
from krea_model.inputs import finite, seed_list, token_counts
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.mmdit import MMDiT
from krea_model.packing import pack, per_token
from krea_model.plain import is_number, is_whole

__all__ = ["OnStep", "Times", "euler", "guided", "noise", "sample", "schedule", "sde", "start", "step_noise"]

Times = Sequence[float] | Sequence[Sequence[float]]
"""Times of the steps, from the first to the last: one list for the whole batch, or one per image, all as long."""

OnStep = Callable[[int, Tensor], None]
"""Called after each forward pass with the number of the step and the current estimate of the clean tokens, `s f`."""


def noise(
    seeds: Sequence[int],
    grids: Grids,
    features: int,
    device: torch.device | str = "cpu",
    *,
    patch: int = 2,
    dtype: torch.dtype = torch.float32,
    drawn_on: torch.device | str = "cpu",
) -> Tensor:
    """Initial noise `s f`, drawn per image from its own seed: an image does not depend on its batch.

    It is drawn as a latent `c h w` and then packed, so that the same generator gives diffusers' noise. The official
    code and diffusers draw it in bfloat16 on the GPU (`dtype`, `drawn_on`; image i has seed + i); the result is fp32.
    ValueError for seeds that are no whole numbers from 0 to 2^64 - 1, for other grids and for unknown devices.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"noise in {dtype}; draw it in torch.float32, or in torch.bfloat16 as the official code does")
    counts, device, drawn_on = token_counts(grids), place(device), place(drawn_on)
    if not is_whole(patch, 1) or not is_whole(features, 1) or features % patch**2:
        raise ValueError(f"{features} features do not divide into patches of {patch}x{patch}; pass the model's patch")
    latents = []
    for seed, (h, w) in zip(seed_list(seeds, len(counts)), grids, strict=True):
        generator = torch.Generator(drawn_on).manual_seed(seed)
        shape = (1, features // patch**2, h * patch, w * patch)
        latents.append(torch.randn(shape, generator=generator, dtype=dtype, device=drawn_on)[0].float())
    return pack(latents, patch)[0].to(device)


def step_noise(seeds: Sequence[int], step: int, grids: Grids, features: int) -> Tensor:
    """Noise `s f` of one step, on the CPU; it depends on each image's (seed, step) and on nothing else."""
    parts = []
    for seed, (h, w) in zip(seeds, grids, strict=True):
        digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        parts.append(torch.randn(h * w, features, generator=generator))
    return torch.cat(parts)


def schedule(steps: int, mu: float | Sequence[float] | None, grids: Grids, strength: float = 1.0) -> Times:
    """Times of a batch (`flow.timesteps`), below strength 1 their last part (`flow.late`).

    mu: one number, one per image, or None for that of the image's tokens (`flow.shift_mu`).
    """
    each = [shift_mu(h * w) for h, w in grids] if mu is None else mu
    if isinstance(each, Sequence):
        return [late(timesteps(steps, one), strength) for one in each]
    return late(timesteps(steps, each), strength)


def start(image: Tensor, x: Tensor, grids: Grids, times: Times) -> Tensor:
    """Where image-to-image begins: clean tokens `s f` mixed with noise x up to their first time; time 1 gives x."""
    first = next(_steps(times, x, grids), None)
    if first is None:
        raise ValueError(f"times {times!r} have no step; give two or more that go down, as `timesteps` makes them")
    _, t, _ = first
    return mix(image.to(x), x, t)


def guided(model: Velocity, cond: Conditioning, uncond: Conditioning | None, guidance: float) -> Velocity:
    """cond + guidance (cond - uncond), the released convention: guidance 0 means none and costs one forward.

    The text stage of an `MMDiT` depends on neither time nor image: it runs here, once, and not in each step.
    """
    guidance = finite(guidance, "guidance", "give a number: 0 is none, 3.5 is usual for Raw")
    if guidance == 0 or uncond is None:
        once = _with_text(model, cond)
        return lambda x, t, _, grids: once(x, t, grids)
    if len(cond.lengths) != len(uncond.lengths) or cond.states.shape[1:] != uncond.states.shape[1:]:
        raise ValueError(
            f"{len(cond.lengths)} prompts with states {tuple(cond.states.shape)}, but {len(uncond.lengths)} with "
            f"{tuple(uncond.states.shape)} in uncond; encode the empty prompt by the same encoder, once per image"
        )
    both = Conditioning(torch.cat([cond.states, uncond.states]), (*cond.lengths, *uncond.lengths))
    twice = _with_text(model, both)

    def velocity(x: Tensor, t: Tensor, _: Conditioning, grids: Grids) -> Tensor:
        v, v0 = twice(torch.cat([x, x]), torch.cat([t, t]), [*grids, *grids]).chunk(2)
        return v + guidance * (v - v0)

    return velocity


def euler(
    velocity: Velocity, x: Tensor, cond: Conditioning, grids: Grids, times: Times, on_step: OnStep | None = None
) -> Tensor:
    """Integrate x, `s f`, from the first time to the last."""
    for step, (at, t, after) in enumerate(_steps(times, x, grids)):
        v = velocity(x, at, cond, grids)
        if on_step is not None:
            on_step(step, clean(x, v, t))
        x = x + (after - t) * v
    return x


def sde(
    velocity: Velocity,
    x: Tensor,
    cond: Conditioning,
    grids: Grids,
    times: Times,
    seeds: Sequence[int],
    scale: float = 0.7,
    on_step: OnStep | None = None,
) -> Tensor:
    """Like `euler`, with noise added in every step and the same marginals (`flow.stochastic`); one seed per image."""
    for step, (at, t, after) in enumerate(_steps(times, x, grids)):
        v = velocity(x, at, cond, grids)
        if on_step is not None:
            on_step(step, clean(x, v, t))
        x, std = stochastic(x, v, t, after, scale)
        x = x + std * step_noise(seeds, step, grids, x.shape[-1]).to(x)
    return x


@torch.inference_mode()
def sample(
    model: Velocity,
    x: Tensor,
    cond: Conditioning,
    grids: Grids,
    *,
    steps: int,
    mu: float | Sequence[float] | None,
    guidance: float = 0.0,
    uncond: Conditioning | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Tokens of noise -> tokens of images. Guidance needs `uncond`, the empty prompt encoded once per image.

    mu: shift of the times, one number, one per image, or None for that of each image's tokens (`flow.shift_mu`).
    """
    if guidance and uncond is None:
        raise ValueError(f"guidance {guidance} needs the encoded empty prompt; pass uncond, or guidance 0")
    return euler(guided(model, cond, uncond, guidance), x, cond, grids, schedule(steps, mu, grids), on_step)


def _with_text(model: Velocity, cond: Conditioning) -> Callable[[Tensor, Tensor, Grids], Tensor]:
    """The model under one conditioning, its text stage done where it has one."""
    if not isinstance(model, MMDiT):
        return lambda x, t, grids: model(x, t, cond, grids)
    text = model.text(cond)
    return lambda x, t, grids: model(x, t, cond, grids, text=text)


def _steps(times: Times, x: Tensor, grids: Grids) -> Iterator[tuple[Tensor, Any, Any]]:
    """Per step the model's time `b`, and its begin and end: two numbers, or two columns `s 1` where images differ."""
    rows = [list(row) for row in times if isinstance(row, Sequence)]
    shared = [t for t in times if not isinstance(t, Sequence)]
    if rows and all(row == rows[0] for row in rows):
        shared = rows[0]
    for row in rows or [shared]:
        _check_times(row)
    if rows and (len(rows) != len(grids) or len({len(row) for row in rows}) != 1):
        raise ValueError(f"times for {len(rows)} images of {len(grids)}; give each image a list, all of one length")
    if shared:
        for t, after in pairwise(shared):
            yield torch.full((len(grids),), float(t), device=x.device), t, after
        return
    columns = torch.tensor(rows, dtype=torch.float64).T.to(x.device, x.dtype)
    for t, after in pairwise(columns):
        yield t.float(), per_token(t, grids), per_token(after, grids)


def _check_times(times: Sequence[Any]) -> None:
    wrong = [t for t in times if not is_number(t) or not 0 <= float(t) <= 1]
    if wrong:
        raise ValueError(
            f"a time of {wrong[0]}; they run from 1 (noise) to 0 (image): divide diffusers' timesteps by 1000"
        )
    if not times or any(after > t for t, after in pairwise(times)):
        shown = f"times that go up from {min(times)} to {max(times)}" if times else "no times"
        raise ValueError(f"{shown}; give two or more that go down, as `timesteps` makes them")
