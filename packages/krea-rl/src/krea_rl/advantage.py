"""Rewards of groups to advantages. One convention, declared: population std (ddof 0), eps outside the root.

Other conventions are arguments: ddof 1 and eps 1e-4 is that of TRL and GDPO's authors, ddof 0 with a scale of "global"
that of flow_grpo. At a group size of 2 the choice of ddof alone is a factor of 1.41.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Scale", "advantages", "gdpo", "informative"]

Scale = Literal["group", "global", "none"]


def advantages(rewards: Tensor, *, scale: Scale = "group", ddof: int = 0, eps: float = 1e-4) -> Tensor:
    """(reward - group mean) / (std + eps); rewards: `p g`, one row per prompt; std of the group or of everything."""
    rewards = _checked(rewards, "rewards", ddof, eps)
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "none":
        return centred
    spread = rewards.std(1, correction=ddof, keepdim=True) if scale == "group" else rewards.std(correction=ddof)
    return centred / (spread + eps)


def gdpo(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    ddof: int = 0,
    eps: float = 1e-4,
    dead: float = 1e-3,
    batch: bool = True,
) -> Tensor:
    """Normalise each reward in its group, add by weight, normalise over the batch (GDPO, arXiv 2601.05242); `p g`.

    rewards: `p g` each. A reward whose std in a group is below `dead` says nothing there and counts as 0: without
    this gate the last step would blow jitter up to unit size. `batch=False` leaves the last step out.
    """
    if not rewards or set(rewards) != set(weights):
        raise ValueError(
            f"rewards {sorted(rewards)} and weights {sorted(weights)} must have the same names, at least one"
        )
    parts = []
    for name, values in rewards.items():
        values = _checked(values, f"reward {name!r}", ddof, eps)
        alive = values.std(1, correction=ddof, keepdim=True) > dead
        parts.append(
            weights[name] * torch.where(alive, advantages(values, ddof=ddof, eps=eps), torch.zeros_like(values))
        )
    total = torch.stack(parts).sum(0)
    if not batch:
        return total
    return (total - total.mean()) / (total.std(correction=ddof) + eps)


def informative(rewards: Mapping[str, Tensor], *, dead: float = 1e-3) -> Tensor:
    """Which groups can teach anything, `p`: those in which at least one reward (not their sum) varies."""
    return torch.stack([values.float().std(1, correction=0) > dead for values in rewards.values()]).any(0)


def _checked(rewards: Tensor, name: str, ddof: int, eps: float) -> Tensor:
    if rewards.ndim != 2 or rewards.shape[1] <= ddof:
        raise ValueError(f"{name} of shape {tuple(rewards.shape)}: expected (prompts, group) with groups above {ddof}")
    if not torch.isfinite(rewards).all():
        raise ValueError(f"{name} contains numbers that are not finite; repair the reward, or leave that group out")
    if eps <= 0:
        raise ValueError(f"eps {eps} must be positive, or a group of equal rewards divides by zero; 1e-4 is usual")
    return rewards if rewards.dtype == torch.float64 else rewards.float()
