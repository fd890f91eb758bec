"""Which tokens of a flat batch belong to which sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Spans"]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """The samples of a flat batch, end to end.

    lengths: tokens of each sample, on the host; owner: `s`, the sample of each token; ends: `b + 1`, int32, where each
    sample begins and the last one ends. Both tensors lie on the device of the tokens.
    """

    lengths: tuple[int, ...]
    owner: Tensor
    ends: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Spans":
        """Made on the host and copied once, so that nothing waits for the device."""
        counts = torch.tensor(lengths, dtype=torch.long)
        owner = torch.arange(len(lengths)).repeat_interleave(counts, output_size=sum(lengths))
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
        return cls(tuple(lengths), owner.to(device, non_blocking=True), ends.to(device, non_blocking=True))

    @property
    def equal(self) -> bool:
        """Whether all samples have as many tokens."""
        return len(set(self.lengths)) == 1

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(self.lengths, default=0)
