"""Averages of weights: a running one during training, and one over finished checkpoints."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from krea_train.parallel import local, place

__all__ = ["Average", "constant", "exponent", "merge", "power"]


def constant(decay: float) -> Callable[[int], float]:
    """The same decay at every step, but a plain mean while that forgets faster: min(decay, 1 - 1/n)."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay {decay} lies outside [0, 1); 0.999 remembers about a thousand steps")
    return lambda step: min(decay, 1 - 1 / step)


def power(gamma: float) -> Callable[[int], float]:
    """(1 - 1/n)^(gamma + 1): a memory that grows with the run (arXiv 2312.02696, equation for beta_gamma)."""
    if gamma < 0:
        raise ValueError(f"gamma {gamma} is negative; 6.94 remembers about the last tenth of a run")
    return lambda step: (1 - 1 / step) ** (gamma + 1)


def exponent(width: float) -> float:
    """The gamma of a power average whose profile has that standard deviation, as a share of the run: 0.1 -> 6.937.

    Solves width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (arXiv 2312.02696).
    """
    if not 0 < width <= 0.288:
        raise ValueError(f"width {width} lies outside (0, 0.288]; 0.05 and 0.1 are common")
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(max(roots.real))


class Average:
    """An exponential average in fp32 of a model's trained parameters, kept beside it and sharded like it.

    decay: step -> decay at that step (`constant`, `power`). With `every` n it moves every n steps, by the n-step decay.
    """

    def __init__(self, model: nn.Module, decay: Callable[[int], float], *, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"average every {every} steps; at least 1")
        self.decay, self.every = decay, every
        self.source = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone().float() for name, p in self.source.items()}
        self.lists = [local(w) for w in self.weights.values()], [local(p.detach()) for p in self.source.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move toward the model after step number `step`, counted from 1."""
        if step % self.every:
            return
        own, theirs = self.lists
        keep = math.prod(self.decay(n) for n in range(step - self.every + 1, step + 1))
        if any(p.dtype != torch.float32 for p in theirs):
            theirs = [p.float() for p in theirs]
        torch._foreach_lerp_(own, theirs, 1 - keep)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again."""
        own = {name: p.detach().clone() for name, p in self.source.items()}
        with ExitStack() as stack:
            stack.callback(self._write, own)
            self._write(self.weights)
            yield

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, p in self.source.items():
            p.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights by parameter name."""
        return dict(self.weights)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError unless the names agree."""
        if state.keys() != self.weights.keys():
            odd = sorted(state.keys() ^ self.weights.keys())
            raise ValueError(f"the average is of another model: {len(odd)} names differ, the first is {odd[0]!r}")
        for name, weight in self.weights.items():
            place(state[name], weight)

    def drop(self, prefix: str) -> None:
        """Forget the parameters whose names begin with `prefix`, after they left the model."""
        self.source = {name: p for name, p in self.source.items() if not name.startswith(prefix)}
        self.weights = {name: self.weights[name] for name in self.source}
        self.lists = [local(w) for w in self.weights.values()], [local(p.detach()) for p in self.source.values()]


def merge(files: Sequence[Path], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of safetensors files of one model, in fp32 (pre-trained model averaging, arXiv 2505.12082).

    Read tensor by tensor: the result and one tensor of each file are in memory. Equal files give themselves back, bit
    for bit. Without weights all count the same; weights are divided by their sum. Raises ValueError when names differ.
    """
    weights = [1.0] * len(files) if weights is None else list(weights)
    if not files or len(weights) != len(files) or sum(weights) <= 0:
        raise ValueError(
            f"{len(weights)} weights with sum {sum(weights)} for {len(files)} files; give one each, sum > 0"
        )
    with ExitStack() as stack:
        readers = [stack.enter_context(safe_open(file, "pt")) for file in files]
        names = [set(reader.keys()) for reader in readers]
        for file, found in zip(files, names, strict=True):
            if odd := sorted(found ^ names[0]):
                raise ValueError(f"{file} and {files[0]} are not of one model: {len(odd)} names differ ({odd[0]!r})")
        return {name: _mean([reader.get_tensor(name) for reader in readers], weights) for name in sorted(names[0])}


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """First tensor plus weighted differences: exact when all are equal."""
    first = tensors[0].float()
    total = torch.zeros_like(first)
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += (weight / sum(weights)) * (tensor.float() - first)
    return first + total
