"""The update of Muon: momentum, orthogonalised, for all matrices of one shape at once (kellerjordan.github.io/posts/muon)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["Muon", "Stack", "orthogonalise", "stacks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon:
    """Settings of Muon with Nesterov momentum; updates have the size of AdamW's, so its rates carry over.

    Source: Krea 2 technical report, section "Pretraining"; size matching from arXiv 2502.16982. `dtype` is that of the
    orthogonalisation alone.
    """

    lr: float
    momentum: float = 0.95
    weight_decay: float = 0.01
    iterations: int = 5
    dtype: torch.dtype = torch.bfloat16


def orthogonalise(matrices: Tensor, iterations: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly, of a batch `b r c` with r <= c: singular values go to about 1.

    Quintic Newton-Schulz iteration of Muon; the result has the given dtype.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x


class Stack:
    """Matrices of one shape, or its transpose, with their momentum in one tensor `b r c`, r <= c."""

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        for name, p in named.items():
            if isinstance(p, DTensor):
                raise ValueError(f"Muon cannot update the sharded matrix {name!r}; use AdamW with FSDP")
        self.names, self.params = list(named), list(named.values())
        self.momentum = torch.stack([torch.zeros_like(_wide(p)) for p in self.params])

    def views(self) -> dict[str, Tensor]:
        """The momentum of each matrix, by name, in the matrix's own orientation and sharing memory."""
        rows = zip(self.names, self.params, self.momentum.unbind(), strict=True)
        return {name: m if p.shape[0] <= p.shape[1] else m.T for name, p, m in rows}

    def step(self, settings: Muon, lr: float, weight_decay: float, skip: Tensor) -> None:
        """Update the matrices that have a gradient; where `skip` is 1 nothing changes, whatever the gradients are."""
        rows = [i for i, p in enumerate(self.params) if p.grad is not None]
        if not rows:
            return
        whole = len(rows) == len(self.params)
        momentum = self.momentum if whole else self.momentum[rows]
        grads = torch.stack([_wide(p.grad) for p in self.params if p.grad is not None])
        grads = torch.where(skip.bool(), momentum, grads)  # moving the momentum toward itself leaves every bit
        momentum.lerp_(grads, 1 - settings.momentum)
        if not whole:
            self.momentum[rows] = momentum
        update = orthogonalise(grads.lerp_(momentum, settings.momentum), settings.iterations, settings.dtype)
        rate = (1 - skip) * lr
        size = -0.2 * math.sqrt(self.momentum.shape[-1]) * rate
        for i, step in zip(rows, update.unbind(), strict=True):
            _wide(self.params[i]).mul_(1 - rate * weight_decay).addcmul_(step, size)


def stacks(named: Mapping[str, nn.Parameter]) -> list[Stack]:
    """The matrices grouped by shape."""
    groups: dict[tuple[int, ...], dict[str, nn.Parameter]] = {}
    for name, p in named.items():
        groups.setdefault((*sorted(p.shape), p.dtype, p.device), {})[name] = p  # type: ignore[arg-type]
    return [Stack(group) for group in groups.values()]


def _wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, whichever has no more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
