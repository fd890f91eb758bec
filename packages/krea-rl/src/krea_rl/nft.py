"""Reinforcement learning on the forward process: no noise in the sampler, no log-probabilities, no guidance.

DiffusionNFT (arXiv 2509.16117): noise the drawn pictures again and regress two mixtures of the new and the old
velocity, one towards good pictures and one, mirrored, away from bad ones:

    v+ = (1 - beta) v_old + beta v,   v- = (1 + beta) v_old - beta v
    L  = r |x0(v+) - x0|^2 / w+  +  (1 - r) |x0(v-) - x0|^2 / w-,   x0(v) = x - t v

r in [0, 1] is how good a picture is for its group and w the mean absolute error (a detached scale). Without the
scales the optimum is v_old + E[(2 r - 1)(v_picture - v_old)] / beta.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from krea_model.flow import clean, mix
from krea_model.interfaces import Grids
from krea_model.packing import image_mean, per_token
from krea_train.random import uniforms
from torch import Tensor, nn

from krea_rl.advantage import gdpo, informative
from krea_rl.grpo import GRPO, Studio, Update, collect, judge
from krea_rl.rollout import Draws, Rollout

__all__ = ["NFT", "Noised", "blend", "nft_loss", "nft_update", "optimality", "renoise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NFT:
    """Settings: beta of the mixtures, pictures per prompt, times per picture and update, decay of the old model.

    adv_max: the advantage that counts as wholly good (r = 1). dead: as in `GRPO`. decay 0 makes the
    old model the one before the update.
    """

    beta: float = 1.0
    group: int = 16
    times: int = 4
    adv_max: float = 5.0
    decay: float = 0.0
    scaled: bool = True
    max_norm: float = 1.0
    dead: float = 1e-3

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.adv_max <= 0 or self.max_norm <= 0 or self.times < 1 or self.group < 2:
            raise ValueError(f"beta, adv_max and max_norm must be positive, times at least 1, group at least 2: {self}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay {self.decay} of the old model is not in [0, 1); 0 copies the model every update")


@dataclass(frozen=True, kw_only=True, slots=True)
class Noised:
    """Pictures noised again: x = (1 - t) x0 + t noise; x and x0: `s f`, t: `b`."""

    x: Tensor
    x0: Tensor
    t: Tensor
    grids: Grids


def optimality(advantages: Tensor, adv_max: float) -> Tensor:
    """Advantages to r in [0, 1]: 1/2 for an average picture, 0 or 1 at minus or plus adv_max."""
    return (advantages / (2 * adv_max) + 0.5).clamp(0, 1)


def nft_loss(v: Tensor, v_old: Tensor, at: Noised, r: Tensor, beta: float, *, scaled: bool = True) -> Tensor:
    """The loss above, mean over the images; v, v_old: `s f`, r: `b`. `scaled=False` leaves w+ and w- out."""
    v_old = v_old.detach()
    times = per_token(at.t, at.grids).to(v.dtype)

    def error(mixture: Tensor) -> Tensor:
        away = clean(at.x, mixture, times) - at.x0
        scale = image_mean(away.detach().abs(), at.grids).clamp(min=1e-5) if scaled else 1.0
        return image_mean(away.square(), at.grids) / scale

    good = error((1 - beta) * v_old + beta * v)
    bad = error((1 + beta) * v_old - beta * v)
    r = r.to(v.dtype)
    return (r * good + (1 - r) * bad).mean()


def nft_update(
    model: nn.Module,
    old: nn.Module,
    optimizer: torch.optim.Optimizer,
    prompts: Sequence[str],
    studio: Studio,
    config: NFT,
    step: int,
) -> Update:
    """Draw with `old` along the flow, score, one optimizer step on `model`, then let `old` follow.

    Needs `steps` forward passes per picture for drawing and 2 per learned time (new and old model).
    """
    quiet = replace(studio, sampler=replace(studio.sampler, noise=0.0))
    groups = [collect(old, prompt, i, quiet, GRPO(group=config.group), step) for i, prompt in enumerate(prompts)]
    scores = judge(prompts, groups, quiet)
    r = optimality(gdpo(scores, studio.rewards.weights, dead=config.dead), config.adv_max)
    optimizer.zero_grad(set_to_none=True)
    total, count = 0.0, len(groups) * config.times
    for place, group in enumerate(groups):
        for turn in range(config.times):
            ids = tuple(f"{place}/{i}/{turn}" for i in range(config.group))
            at = renoise(group, Draws(seed=studio.seed, step=step, ids=ids))
            inputs = (at.x, at.t, group.cond, group.grids)
            with torch.no_grad():
                v_old = old(*inputs)
            loss = nft_loss(model(*inputs), v_old, at, r[place].to(at.x), config.beta, scaled=config.scaled)
            (loss * config.adv_max / config.beta / count).backward()
            total += loss.item() / count
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_norm).item()
    if not norm < float("inf"):
        raise ValueError(f"loss {total} or gradient norm {norm} is not finite; the model was left as it was")
    optimizer.step()
    blend(old, model, config.decay)
    metrics = {f"reward/{name}": values.mean().item() for name, values in scores.items()}
    metrics |= {
        "loss": total,
        "grad_norm": norm,
        "informative": informative(scores, dead=config.dead).float().mean().item(),
    }
    return Update(scores=scores, metrics=metrics)


def renoise(group: Rollout, draws: Draws) -> Noised:
    """Fresh times (uniform, kept off the ends) and noise for finished pictures."""
    t = 0.02 + 0.96 * uniforms(draws.seed, "renoise time", draws.step, draws.ids).to(group.tokens)
    noise = draws.normals("renoise", group.grids, group.tokens.shape[-1]).to(group.tokens)
    times = per_token(t, group.grids).to(group.tokens)
    return Noised(x=mix(group.tokens, noise, times), x0=group.tokens, t=t, grids=group.grids)


@torch.no_grad()
def blend(old: nn.Module, model: nn.Module, decay: float) -> None:
    """old <- decay old + (1 - decay) model, parameter by parameter."""
    for slow, fast in zip(old.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast.to(slow), 1 - decay)
