"""The one shape that reinforcement learning asks of the outside: a reward."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Reward"]


class Reward(Protocol):
    """Scores of pictures under their prompts; higher is better.

    images: `b c H W` in [-1, 1], image i belongs to prompts[i]; returns `b` finite numbers, detached.
    """

    def __call__(self, prompts: Sequence[str], images: Tensor) -> Tensor: ...
