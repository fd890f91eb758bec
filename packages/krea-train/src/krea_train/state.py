"""Everything that a run needs to go on as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from krea_train.average import Average
from krea_train.interfaces import Batches
from krea_train.parallel import place

__all__ = ["Optimizer", "State"]


class Optimizer(Protocol):
    """What the loop asks of an optimizer: any of torch's, or `optim.Optimizer`."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def step(self) -> Any: ...

    def zero_grad(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...


@dataclass(kw_only=True, slots=True)
class State:
    """A run between two steps. `step` counts finished steps; `ended` says why it stopped early, if it did."""

    model: nn.Module
    optimizer: Optimizer
    batches: Batches
    average: Average | None = None
    step: int = 0
    images: int = 0
    ended: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Parts by name, as `checkpoint.save` takes them; the model's tensors carry their own names."""
        parts = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "progress": {"step": self.step, "images": self.images},
        }
        return parts | ({"average": self.average.state_dict()} if self.average is not None else {})

    def load_state_dict(self, parts: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave; raises ValueError when it belongs to another model or optimizer."""
        if (self.average is None) != ("average" not in parts):
            raise ValueError("the run and its checkpoint do not agree on averaging; keep `average` as it was")
        load_model(self.model, parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.batches.load_state_dict(parts["batches"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        self.step, self.images = parts["progress"]["step"], parts["progress"]["images"]


def load_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a plain or sharded model; raises ValueError unless names and shapes agree exactly."""
    own = model.state_dict()
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise ValueError(f"the checkpoint is of another model: {len(odd)} names differ, the first is {odd[0]!r}")
    for name, target in own.items():
        if tensors[name].shape != target.shape:
            shapes = f"{tuple(tensors[name].shape)} in the checkpoint, {tuple(target.shape)} in the model"
            raise ValueError(f"the checkpoint is of another model: {name!r} is {shapes}")
        place(tensors[name], target)
