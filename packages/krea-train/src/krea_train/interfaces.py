"""The shapes that the training loop asks of data, losses and logs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.nn import Module

__all__ = ["Batch", "Batches", "Log", "Objective"]


class Batch(Protocol):
    """Pictures of one size with their captions, on the CPU."""

    @property
    def images(self) -> Tensor:
        """`b 3 H W`, uint8."""
        ...

    @property
    def captions(self) -> Sequence[Mapping[str, str]]:
        """Per image the captions by length: "short", "medium", "long"."""
        ...

    @property
    def ids(self) -> Sequence[str]: ...


class Batches(Protocol):
    """An endless, replayable stream: batch number n is a pure function of (seed, n)."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Objective(Protocol):
    """A loss: mean over the images of the batch, and metrics as detached tensors (no host synchronisation)."""

    def __call__(self, model: Module, batch: Batch, step: int, /) -> tuple[Tensor, dict[str, Tensor]]: ...


class Log(Protocol):
    """Where numbers go."""

    def __call__(self, step: int, metrics: Mapping[str, float], /) -> None: ...
