"""Learn from pairs: DPO for flow matching, and the terms that keep the winner likely.

Plain DPO widens the margin between winner and loser while the loss of *both* rises: the model drifts away from what
it was trained on (Krea 2 technical report, section "Preference optimization"). One loss holds the whole family:

    L = -log sigmoid(u) + anchor * l_w + keep * |v - v_ref|^2
    u = -(beta / 2) * (D_w - D_l + hinge * max(0, D_w))

l_w and l_l are the velocity regression errors of winner and loser (mean over the elements of an image) at one shared
time and noise, D_w and D_l their differences to the reference model. `stpo` is the combination that held in our
measurements; the report gives no formula for its STPO, so that name stands for our reading of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from krea_model.flow import logit_normal, mix, shift, velocity
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.packing import image_mean, pack, per_token
from krea_train.interfaces import Batch
from krea_train.random import stratified
from torch import Tensor
from torch.nn import Module

from krea_rl.rollout import Draws

__all__ = [
    "Pairs",
    "Preference",
    "PreferenceObjective",
    "Side",
    "compare",
    "dpo",
    "dpo_positive",
    "preference_loss",
    "safeguard",
    "sdpo",
    "stpo",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """Weights of the terms of the preference loss; a weight of 0 (or None) leaves its term out.

    beta: sharpness of the comparison; for errors that are means over elements, 1000 to 5000 on large models.
    hinge: extra weight on a rise of the winner's error (DPO-Positive, arXiv 2402.13228).
    safeguard: mu in [0, 1], scales the loser's gradient so that to first order the winner's error falls by mu times
        its own squared gradient (Diffusion-SDPO, arXiv 2511.03317); a promise for small plain steps, not for Adam.
    anchor: flow matching on the winner. keep: squared distance to the reference velocity, on both members.
    """

    beta: float
    hinge: float = 0.0
    safeguard: float | None = None
    anchor: float = 0.0
    keep: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta {self.beta} must be positive; 1000 to 5000 suit errors averaged over elements")
        for name in ("hinge", "anchor", "keep"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} is negative; use 0 to leave the term out")
        if self.safeguard is not None and not 0 <= self.safeguard <= 1:
            raise ValueError(f"safeguard {self.safeguard} is not in [0, 1]; use None to leave it out")


def dpo(beta: float) -> Preference:
    """Diffusion-DPO (arXiv 2311.12908) in velocity space, without any safeguard."""
    return Preference(beta=beta)


def dpo_positive(beta: float, hinge: float = 1.0) -> Preference:
    """DPO with the winner hinge alone (arXiv 2402.13228)."""
    return Preference(beta=beta, hinge=hinge)


def sdpo(beta: float, mu: float = 0.5) -> Preference:
    """DPO with the safeguarded loser gradient alone (arXiv 2511.03317)."""
    return Preference(beta=beta, safeguard=mu)


def stpo(beta: float = 2000.0) -> Preference:
    """DPO with a flow-matching anchor and a small hinge: our reading of STPO, whose formula is not public.

    Measured on a plane flow: at beta 20 with errors summed over elements, anchor 1 and hinge 0.25. The anchor scales
    with beta, so that the choice of sum or mean does not change the balance of the terms.
    """
    return Preference(beta=beta, hinge=0.25, anchor=beta / 20)


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What is known of one member of the pairs: the model's and the reference's velocity and the target, each `s f`."""

    v: Tensor
    v_ref: Tensor
    target: Tensor

    def errors(self, grids: Grids) -> tuple[Tensor, Tensor]:
        """Regression errors of model and reference, each `b`, in fp32 or better."""
        target = _wide(self.target)
        return (
            image_mean((_wide(self.v) - target).square(), grids),
            image_mean((_wide(self.v_ref) - target).square(), grids).detach(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Latent tokens of b pairs; winner and loser: `s f` in the same layout, prompt i belongs to pair i."""

    winner: Tensor
    loser: Tensor
    cond: Conditioning
    grids: Grids

    def __post_init__(self) -> None:
        if self.winner.shape != self.loser.shape:
            raise ValueError(
                f"winners of shape {tuple(self.winner.shape)} and losers of shape {tuple(self.loser.shape)}: the two "
                "pictures of a pair share their noise and must have one size; crop or resize them alike"
            )


def preference_loss(weights: Preference, winner: Side, loser: Side, grids: Grids) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss over the pairs, and detached metrics with winner and loser apart."""
    win, win_ref = winner.errors(grids)
    lose, lose_ref = loser.errors(grids)
    scale = torch.ones((), dtype=win.dtype, device=win.device)
    if weights.safeguard is not None:
        scale = safeguard(winner.v - winner.target, loser.v - loser.target, weights.safeguard).to(win.dtype)
    rise = win - win_ref
    fall = scale * lose + (1 - scale) * lose.detach() - lose_ref  # the value is that of DPO, the gradient is scaled
    logit = -weights.beta / 2 * (rise - fall + weights.hinge * F.relu(rise))
    loss = -F.logsigmoid(logit)  # per pair: the mean is taken outside, or pairs would share one sigmoid
    if weights.anchor:
        loss = loss + weights.anchor * win
    if weights.keep:
        near = image_mean((_wide(winner.v) - _wide(winner.v_ref)).square(), grids)
        near = near + image_mean((_wide(loser.v) - _wide(loser.v_ref)).square(), grids)
        loss = loss + weights.keep * near / 2
    metrics = {
        "winner_delta": rise.mean(),
        "loser_delta": fall.mean(),
        "accuracy": (rise < fall).to(win.dtype).mean(),
        "logit": logit.mean(),
        "safeguard": scale,
    }
    return loss.mean(), {name: value.detach() for name, value in metrics.items()}


def safeguard(winner: Tensor, loser: Tensor, mu: float) -> Tensor:
    """The factor on the loser's gradient, one scalar a batch: clip((1 - mu) |g_w|^2 / <g_w, g_l>, 0, 1).

    winner, loser: output-space gradients g (here the residuals v - target); 1 where they do not conflict.
    """
    a, b = _wide(winner).detach(), _wide(loser).detach()
    overlap = (a * b).sum()
    factor = ((1 - mu) * a.square().sum() / overlap.clamp(min=torch.finfo(a.dtype).tiny)).clamp(0, 1)
    return torch.where(overlap > 0, factor, torch.ones_like(factor))


def compare(
    model: Velocity, reference: Velocity, pairs: Pairs, t: Tensor, noise: Tensor, weights: Preference
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss at given times `b` and noise `s f`, which winner and loser share; two forward passes in all."""
    times = per_token(t, pairs.grids).to(pairs.winner.dtype)
    x = torch.cat([mix(pairs.winner, noise, times), mix(pairs.loser, noise, times)])
    both = Conditioning(torch.cat([pairs.cond.states] * 2), pairs.cond.lengths * 2)
    inputs = (x, torch.cat([t, t]), both, [*pairs.grids, *pairs.grids])
    v = model(*inputs)
    with torch.no_grad():
        v_ref = reference(*inputs)
    (v_w, v_l), (r_w, r_l) = v.chunk(2), v_ref.chunk(2)
    winner = Side(v=v_w, v_ref=r_w, target=velocity(pairs.winner, noise))
    loser = Side(v=v_l, v_ref=r_l, target=velocity(pairs.loser, noise))
    return preference_loss(weights, winner, loser, pairs.grids)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceObjective:
    """A krea-train Objective over batches in which picture 2i is the winner and picture 2i + 1 the loser of pair i.

    weights: the loss. reference: a frozen copy of the model that was there before. latents: (batch, step) ->
    `b c h w` or a list of `c h w`, on the model's device; text: prompts -> states; the winner's longest caption is the
    prompt. Noise derives from (seed, step, id of the winner); mu: shift of the times, a property of the resolution.
    """

    weights: Preference
    reference: Velocity
    latents: Callable[[Batch, int], Tensor | Sequence[Tensor]]
    text: Callable[[Sequence[str]], Conditioning]
    seed: int
    mu: float = 0.0
    patch: int = 2

    def __call__(self, model: Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if len(batch.images) % 2 or not len(batch.images):
            raise ValueError(
                f"a batch of {len(batch.images)} pictures holds no whole pairs; put each loser after its winner"
            )
        latents = self.latents(batch, step)
        ids = list(batch.ids[::2])
        winner, grids = pack(latents[::2], self.patch)
        loser, _ = pack(latents[1::2], self.patch)
        cond = self.text([longest(captions) for captions in batch.captions[::2]])
        noise = Draws(seed=self.seed, step=step, ids=tuple(ids)).normals("preference", grids, winner.shape[-1])
        t = shift(logit_normal(stratified(self.seed, "preference time", step, ids)), self.mu)
        pairs = Pairs(winner=winner.float(), loser=loser.float(), cond=cond, grids=grids)
        return compare(model, self.reference, pairs, t.to(winner.device), noise.to(winner.device), self.weights)


def longest(captions: Mapping[str, str]) -> str:
    """The caption with the most detail among those of an image."""
    return next((captions[name] for name in ("long", "medium", "short") if name in captions), "")


def _wide(x: Tensor) -> Tensor:
    """At least fp32: differences of errors vanish in bf16."""
    return x if x.dtype == torch.float64 else x.float()
