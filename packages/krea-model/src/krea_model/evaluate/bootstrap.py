"""How sure a figure is: percentile intervals from resampling, the same every time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krea_model.inputs import seed_list
from krea_model.plain import is_whole

__all__ = ["Estimate", "bootstrap", "draws", "mean", "median", "percentile"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def bootstrap(
    values: Tensor,
    groups: Sequence[int],
    statistic: Callable[[Tensor], float],
    *,
    seed: int = 0,
    repeats: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """A statistic of values `b` with its percentile interval, by drawing whole groups with replacement.

    groups: the group of each value, from 0 on. Pictures of one prompt are alike, so the prompts are drawn, not the
    pictures; with one picture per prompt it is the same.
    """
    if not len(values) or len(values) != len(groups) or not all(is_whole(group, 0) for group in groups):
        raise ValueError(
            f"{len(values)} values in {len(groups)} groups; give at least one value, and a group from 0 on for each"
        )
    owner = torch.tensor(groups)
    weights = draws(int(owner.max()) + 1, repeats, seed).long()[:, owner]
    found = [statistic(values.repeat_interleave(row)) for row in weights if row.any()]
    return Estimate(statistic(values), *percentile(torch.tensor(found, dtype=torch.float64), level))


def draws(count: int, repeats: int, seed: int) -> Tensor:
    """`repeats count`, float64: how often each of `count` things is drawn in `count` draws with replacement."""
    if not is_whole(repeats, 1):
        raise ValueError(f"repeats are {repeats!r}; give a whole number of at least 1, 1000 is usual")
    (seed,) = seed_list([seed], 1)
    chosen = torch.randint(count, (repeats, count), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(repeats, count, dtype=torch.float64).scatter_add_(1, chosen, torch.ones_like(chosen).double())


def percentile(found: Tensor, level: float) -> tuple[float, float]:
    """The middle part of `found` that holds the share `level` of it, as its two ends."""
    if not 0 < level < 1:
        raise ValueError(f"a level of {level}; it lies between 0 and 1, such as 0.95")
    low, high = torch.quantile(found.double(), torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return float(low), float(high)


def mean(values: Tensor) -> float:
    """Arithmetic mean."""
    return float(values.double().mean())


def median(values: Tensor) -> float:
    """Median; between the two middle values where their number is even."""
    return float(values.double().quantile(0.5))
