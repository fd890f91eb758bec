"""The prompt pool: spend pictures on prompts that still teach something.

The report tracks the rewards of every prompt's groups and down-weights or removes those that are too easy, always
fail or vary little (Krea 2 technical report, section "Reinforcement learning"). Numbers here are ours: rewards are
taken to lie in [0, 1], and a removed prompt comes back for a test later, because the model moves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from krea_train.random import uniforms
from torch import Tensor

__all__ = ["Pool", "PromptPool", "Status"]

Status = Literal["new", "active", "easy", "hopeless", "flat"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Settings: decay of the running mean and variance, when a prompt retires, and when it is tested again.

    low, high: mean rewards below and above which a prompt retires; spread: smallest std of its groups; visits: groups
    seen before a prompt may retire; retest: updates after which a retired prompt is drawn again; explore: smallest
    weight of an active prompt relative to the largest.
    """

    decay: float = 0.7
    power: float = 0.5
    low: float = 0.05
    high: float = 0.95
    spread: float = 0.01
    visits: int = 2
    retest: int = 50
    explore: float = 0.05

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and 0 < self.explore <= 1 and self.low < self.high):
            raise ValueError(f"decay must be in [0, 1), explore in (0, 1], low below high: {self}")
        if self.visits < 1 or self.retest < 1:
            raise ValueError(f"visits and retest must be at least 1: {self}")


class PromptPool:
    """Prompts with running statistics; `draw`, then `record` what the drawn groups scored."""

    def __init__(self, prompts: Sequence[str], settings: Pool | None = None, seed: int = 0) -> None:
        if not prompts or len(set(prompts)) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts with {len(set(prompts))} distinct; give each once, at least one")
        self.prompts, self.settings, self.seed = tuple(prompts), settings or Pool(), seed
        self.mean = torch.zeros(len(prompts), dtype=torch.float64)
        self.variance = torch.zeros(len(prompts), dtype=torch.float64)
        self.visits = torch.zeros(len(prompts), dtype=torch.int64)
        self.last = torch.zeros(len(prompts), dtype=torch.int64)
        self.clock = 0

    def status(self, index: int) -> Status:
        """Whether a prompt is drawn, or why not."""
        visits = int(self.visits[index])
        if visits == 0:
            return "new"
        if visits < self.settings.visits:
            return "active"
        mean = float(self.mean[index])
        if mean > self.settings.high:
            return "easy"
        if mean < self.settings.low:
            return "hopeless"
        return "flat" if float(self.variance[index]) < self.settings.spread**2 else "active"

    def weights(self) -> Tensor:
        """Relative chance of each prompt to be drawn next, in [0, 1]; 0 for a retired prompt that is not yet due."""
        top = max(float(self.variance.max()) ** 0.5, 1e-12)
        out = torch.zeros(len(self.prompts), dtype=torch.float64)
        for i in range(len(self.prompts)):
            status = self.status(i)
            if status == "new":
                out[i] = 1.0
            elif status == "active":
                share = (float(self.variance[i]) ** 0.5 / top) ** self.settings.power
                out[i] = max(share, self.settings.explore)
            elif self.clock - int(self.last[i]) >= self.settings.retest:
                out[i] = 1.0
        return out

    def draw(self, count: int) -> list[int]:
        """Indices of `count` different prompts; a pure function of the state and the seed.

        If too few are left, the retired ones that were seen longest ago fill the rest.
        """
        if not 1 <= count <= len(self.prompts):
            raise ValueError(
                f"{count} prompts asked of a pool of {len(self.prompts)}; ask for 1 to {len(self.prompts)}"
            )
        uniform = uniforms(self.seed, "pool", self.clock, self.prompts)
        weights = self.weights()
        order = torch.where(weights > 0, uniform.log() / weights, -1e12 - self.last.double())
        return order.argsort(descending=True, stable=True)[:count].tolist()

    def record(self, indices: Sequence[int], rewards: Tensor) -> None:
        """Take in the scores `p g` of the drawn prompts; one call per update. A re-test starts the averages afresh."""
        if rewards.ndim != 2 or len(rewards) != len(indices) or not torch.isfinite(rewards).all():
            raise ValueError(
                f"rewards of shape {tuple(rewards.shape)} for {len(indices)} prompts: expected finite (prompts, group)"
            )
        self.clock += 1
        for index, row in zip(indices, rewards.double().cpu(), strict=True):
            afresh = self.status(index) not in ("active",)
            keep = 0.0 if afresh else self.settings.decay
            self.mean[index] = keep * self.mean[index] + (1 - keep) * row.mean()
            self.variance[index] = keep * self.variance[index] + (1 - keep) * row.var(correction=0)
            self.visits[index] += 1
            self.last[index] = self.clock

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, with the prompts themselves to check against."""
        arrays = {name: getattr(self, name).clone() for name in ("mean", "variance", "visits", "last")}
        return {"prompts": list(self.prompts), "clock": self.clock, "seed": self.seed, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; ValueError if it belongs to other prompts."""
        if tuple(state["prompts"]) != self.prompts:
            raise ValueError(
                f"the saved pool holds {len(state['prompts'])} prompts that differ from the {len(self.prompts)} given; "
                "build the pool from the same prompts, or start a new one"
            )
        for name in ("mean", "variance", "visits", "last"):
            getattr(self, name).copy_(state[name])
        self.clock, self.seed = int(state["clock"]), int(state["seed"])
