"""One update of online reinforcement learning: draw groups of pictures, judge them, push towards the better ones.

    rollouts    a group of pictures per prompt, drawn with noise in the steps     (rollout.py)
    scores      every reward on every picture                                     (rewards/)
    advantages  better or worse than the rest of the group, per reward, summed    (advantage.py)
    learn       raise the probability of the steps that led to better pictures    (here)

No guidance is used anywhere, in drawing or in learning (Krea 2 technical report, section "Reinforcement learning"):
a picture costs `steps` forward passes and each learned step one more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from krea_model.interfaces import Autoencoder, Conditioning, Grids, TextEncoder, Velocity
from krea_model.packing import unpack
from torch import Tensor, nn

from krea_rl.advantage import gdpo, informative
from krea_rl.rewards.combine import Rewards
from krea_rl.rollout import Draws, Rollout, Sampler, kl, rollout, transition

__all__ = ["GRPO", "Studio", "Update", "collect", "decoder", "learn", "step_loss", "update"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPO:
    """Settings of the update (arXiv 2402.03300, for flows 2505.05470).

    group: pictures per prompt. clip: range of the probability ratio; log-probabilities are means over elements, so
        1e-4 suits images and 0.2 a handful of numbers. adv_clip: largest advantage in size. epochs: optimizer steps
        on the same pictures. kl: weight of the divergence to a reference model. same_noise: one start noise a group.
    dead: a reward whose std in a group is smaller says nothing there.
    """

    group: int = 16
    clip: float = 1e-4
    adv_clip: float = 5.0
    epochs: int = 1
    kl: float = 0.0
    same_noise: bool = False
    max_norm: float = 1.0
    dead: float = 1e-3

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"a group of {self.group} has nothing to compare; use at least 2, 16 to 24 are usual")
        if self.clip <= 0 or self.adv_clip <= 0 or self.max_norm <= 0 or self.epochs < 1 or self.kl < 0:
            raise ValueError(f"clip, adv_clip and max_norm must be positive, epochs at least 1, kl at least 0: {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Studio:
    """Where pictures are made and judged.

    decode: tokens `s f` and grids -> pictures `b c H W` in [-1, 1]; grid: token rows and columns of every picture.
    """

    text: TextEncoder
    decode: Callable[[Tensor, Grids], Tensor]
    rewards: Rewards
    grid: tuple[int, int]
    features: int
    sampler: Sampler
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What an update saw: scores `p g` per reward (for the prompt pool), and numbers for the log."""

    scores: dict[str, Tensor]
    metrics: dict[str, float]


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    prompts: Sequence[str],
    studio: Studio,
    config: GRPO,
    step: int,
    reference: Velocity | None = None,
) -> Update:
    """Draw a group per prompt, score, compare, learn. `step` numbers the update and seeds all its noise."""
    if config.kl and reference is None:
        raise ValueError(f"kl weight {config.kl} needs the reference model; pass reference, or kl 0")
    rollouts = [collect(model, prompt, place, studio, config, step) for place, prompt in enumerate(prompts)]
    scores = judge(prompts, rollouts, studio)
    advantages = gdpo(scores, studio.rewards.weights, dead=config.dead).clamp(-config.adv_clip, config.adv_clip)
    metrics = {f"reward/{name}": values.mean().item() for name, values in scores.items()}
    metrics["informative"] = informative(scores, dead=config.dead).float().mean().item()
    for _ in range(config.epochs):
        metrics |= learn(model, optimizer, rollouts, advantages, config, reference)
    return Update(scores=scores, metrics=metrics)


def collect(model: Velocity, prompt: str, place: int, studio: Studio, config: GRPO, step: int) -> Rollout:
    """One group: the same prompt, `group` pictures. `place` is the prompt's position in the update."""
    with torch.no_grad():
        one = studio.text([prompt])
    cond = Conditioning(one.states.repeat(config.group, 1, 1), one.lengths * config.group)
    grids = [studio.grid] * config.group
    draws = Draws(seed=studio.seed, step=step, ids=tuple(f"{place}/{i}" for i in range(config.group)))
    starts = replace(draws, ids=draws.ids[:1] * config.group) if config.same_noise else draws
    start = starts.normals("start", grids, studio.features).to(cond.states.device)
    return rollout(model, start, cond, grids, studio.sampler, draws)


def judge(prompts: Sequence[str], rollouts: Sequence[Rollout], studio: Studio) -> dict[str, Tensor]:
    """Scores `p g` per reward of all groups."""
    with torch.no_grad():
        images = torch.cat([studio.decode(group.tokens, group.grids) for group in rollouts])
    per_prompt = [len(group.grids) for group in rollouts]
    repeated = [prompt for prompt, count in zip(prompts, per_prompt, strict=True) for _ in range(count)]
    scores = studio.rewards(repeated, images)
    return {name: values.unflatten(0, (len(prompts), -1)) for name, values in scores.items()}


def learn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    advantages: Tensor,
    config: GRPO,
    reference: Velocity | None = None,
) -> dict[str, float]:
    """One optimizer step on all recorded steps; advantages: `p g`.

    Every group is replayed in the layout it was drawn in: before the first update the ratio is exactly 1.
    """
    optimizer.zero_grad(set_to_none=True)
    count = sum(len(group.steps) for group in rollouts)
    if not count:
        raise ValueError("the sampler drew no stochastic step, so there is nothing to learn; raise steps or noise")
    sums = torch.zeros(3)
    for group, advantage in zip(rollouts, advantages, strict=True):
        for i in range(len(group.steps)):
            loss, stats = step_loss(model, group, i, advantage, config, reference)
            (loss / count).backward()
            sums += stats / count
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_norm).item()
    if not (torch.isfinite(sums).all() and norm < float("inf")):
        raise ValueError(f"loss {sums[0].item()} or gradient norm {norm} is not finite; the model was left as it was")
    optimizer.step()
    return {"loss": sums[0].item(), "clipped": sums[1].item(), "ratio_max": sums[2].item(), "grad_norm": norm}


def step_loss(
    model: Velocity, group: Rollout, index: int, advantage: Tensor, config: GRPO, reference: Velocity | None
) -> tuple[Tensor, Tensor]:
    """Clipped loss of one recorded step, and (loss, clipped share, largest |ratio - 1|); advantage: `g`."""
    step = group.steps[index]
    likely, mean, std = transition(model, step, group.cond, group.grids)
    advantage = advantage.to(likely)
    ratio = (likely - step.log_prob).exp()
    kept = ratio.clamp(1 - config.clip, 1 + config.clip)
    loss = -torch.minimum(advantage * ratio, advantage * kept).mean()
    if config.kl and reference is not None:
        with torch.no_grad():
            _, anchor, _ = transition(reference, step, group.cond, group.grids)
        loss = loss + config.kl * kl(mean, anchor, std, group.grids).mean()
    clipped = (advantage * ratio > advantage * kept).float().mean()
    return loss, torch.stack([loss, clipped, (ratio - 1).abs().max()]).detach().float().cpu()


def decoder(autoencoder: Autoencoder, patch: int = 2) -> Callable[[Tensor, Grids], Tensor]:
    """The `decode` of a studio whose pictures are the latents of an autoencoder."""

    def decode(tokens: Tensor, grids: Grids) -> Tensor:
        return autoencoder.decode(torch.stack(unpack(tokens, grids, patch)))

    return decode
