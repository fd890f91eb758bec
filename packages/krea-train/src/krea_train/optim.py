"""AdamW and Muon behind one optimizer, which parameters each gets, and the learning rate over a run.

State is stored under parameter names; learning rates and other settings are not stored, so that they come from the
code that resumes the run. Set `found_inf` (as torch's gradient scaler does) to skip an update without a host
synchronisation.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw as adamw_update

from krea_train.parallel import local, place

__all__ = ["AdamW", "Muon", "Optimizer", "decays", "is_hidden", "orthogonalise", "warmup_stable_decay"]

HIDDEN = re.compile(r"(^|\.)(transformer_)?blocks\.\d+\.(attn|mlp|ff)\..*\.?weight$")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """Settings of AdamW (arXiv 1711.05101)."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01


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


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes it: a matrix of attention or MLP in a main block, by the released or diffusers' names.

    Left to AdamW: first and last linear, time and text MLPs, text fusion with its 1 x taps projector, norms, biases and
    modulation tables, which are matrices in some layouts (Krea 2 technical report, section "Pretraining").
    """
    return parameter.ndim == 2 and min(parameter.shape) > 1 and "norm" not in name and bool(HIDDEN.search(name))


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices and zero-centred norms, not to biases, tables and plain norms.

    Decay pulls a zero-centred scale toward plain normalisation (Krea 2 technical report, section "Architecture").
    """
    return not name.endswith((".bias", ".lin", ".gain", "scale_shift_table"))


class Optimizer:
    """AdamW for all trained parameters of a model, or Muon for its hidden matrices and AdamW for the rest.

    `hidden` chooses Muon's matrices; `rate` multiplies the learning rate by parameter name. Build it after sharding;
    Muon refuses sharded matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        adamw: AdamW,
        muon: Muon | None = None,
        *,
        hidden: Callable[[str, Tensor], bool] = is_hidden,
        rate: Callable[[str], float] = lambda _: 1.0,
    ) -> None:
        self.found_inf: Tensor | None = None
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[str, dict[str, Tensor]] = {}
        groups: dict[tuple[AdamW | Muon, float, float], dict[str, nn.Parameter]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                settings = muon if muon is not None and hidden(name, p) else adamw
                decay = settings.weight_decay if decays(name) else 0.0
                groups.setdefault((settings, rate(name), decay), {})[name] = p
        if not groups:
            raise ValueError("the model has no parameter that requires a gradient")
        for (settings, factor, decay), named in groups.items():
            group = {"names": list(named), "params": list(named.values()), "settings": settings}
            self.param_groups.append(group | {"lr": factor * settings.lr, "weight_decay": decay})
            self._start(named, settings)

    def _start(self, named: Mapping[str, nn.Parameter], settings: AdamW | Muon) -> None:
        for name, p in named.items():
            if isinstance(settings, Muon):
                if isinstance(p, DTensor):
                    raise ValueError(f"Muon cannot update the sharded matrix {name!r}; use AdamW with FSDP")
                self.state[name] = {"momentum": torch.zeros_like(p)}
            else:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[name] = {"step": step, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """By this torch's gradient scaler, and `loop.fit`, know that `found_inf` is obeyed."""
        return True

    def zero_grad(self) -> None:
        """Free all gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient; none of them, and no state, where `found_inf` is 1."""
        for group in self.param_groups:
            members = [(p, self.state[n]) for n, p in zip(group["names"], group["params"], strict=True)]
            members = [(p, state) for p, state in members if p.grad is not None]
            if not members:
                continue
            if isinstance(group["settings"], Muon):
                self._step_muon(members, group)
            else:
                self._step_adamw(members, group)

    def _step_adamw(self, members: list[tuple[nn.Parameter, dict[str, Tensor]]], group: dict[str, Any]) -> None:
        beta1, beta2 = group["settings"].betas
        adamw_update(
            [local(p) for p, _ in members],
            [local(p.grad) for p, _ in members if p.grad is not None],
            [local(state["mean"]) for _, state in members],
            [local(state["square"]) for _, state in members],
            [],
            [state["step"] for _, state in members],
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["settings"].eps,
            maximize=False,
        )

    def _step_muon(self, members: list[tuple[nn.Parameter, dict[str, Tensor]]], group: dict[str, Any]) -> None:
        """Update matrices of one shape through one batched orthogonalisation."""
        buckets: dict[torch.Size, list[tuple[nn.Parameter, Tensor, Tensor]]] = {}
        for p, state in members:
            if p.grad is not None:
                buckets.setdefault(p.shape, []).append((p, p.grad, state["momentum"]))
        for bucket in buckets.values():
            self._step_bucket(bucket, group)

    def _step_bucket(self, bucket: list[tuple[nn.Parameter, Tensor, Tensor]], group: dict[str, Any]) -> None:
        settings, first = group["settings"], bucket[0][0]
        bad = torch.zeros((), device=first.device) if self.found_inf is None else self.found_inf
        update = torch.empty(len(bucket), *first.shape, dtype=settings.dtype, device=first.device)
        for row, (_, grad, momentum) in zip(update, bucket, strict=True):
            grad = torch.where(bad.bool(), momentum, grad)  # the momentum on its way to itself keeps every bit
            momentum.lerp_(grad, 1 - settings.momentum)
            row.copy_(grad.lerp_(momentum, settings.momentum))
        rate = ((1 - bad) * group["lr"]).to(first.dtype)
        keep, size = 1 - rate * group["weight_decay"], -0.2 * math.sqrt(max(first.shape)) * rate
        for row, (p, _, _) in zip(orthogonalise(update, settings.iterations, settings.dtype), bucket, strict=True):
            p.mul_(keep).addcmul_(row.to(p.dtype), size)

    def state_dict(self) -> dict[str, Any]:
        """Tensors by kind and parameter name."""
        kinds = ("step", "mean", "square", "momentum")
        return {kind: {name: s[kind] for name, s in self.state.items() if kind in s} for kind in kinds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError unless the same parameters were given to the same algorithm."""
        for kind, own in self.state_dict().items():
            if odd := sorted(own.keys() ^ state[kind].keys()):
                raise ValueError(f"the optimizer's {kind!r} is of another run: {len(odd)} names differ ({odd[0]!r})")
            for name, tensor in own.items():
                place(state[kind][name], tensor)

    def drop(self, prefix: str) -> None:
        """Forget the parameters whose names begin with `prefix`, after they left the model."""
        for group in self.param_groups:
            kept = [(n, p) for n, p in zip(group["names"], group["params"], strict=True) if not n.startswith(prefix)]
            group["names"], group["params"] = [n for n, _ in kept], [p for _, p in kept]
        self.state = {name: state for name, state in self.state.items() if not name.startswith(prefix)}


def orthogonalise(matrices: Tensor, iterations: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly, of a batch `b r c`: singular values go to about 1.

    Quintic Newton-Schulz iteration of Muon (kellerjordan.github.io/posts/muon).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    wide = x.shape[-2] <= x.shape[-1]
    for _ in range(iterations):
        gram = x @ x.mT if wide else x.mT @ x
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a) if wide else torch.baddbmm(x, x, poly, beta=a)
    return x


def warmup_stable_decay(
    step: int,
    *,
    steps: int,
    warmup: int = 0,
    decay: int = 0,
    floor: float = 0.0,
    shape: Literal["linear", "sqrt"] = "linear",
) -> float:
    """Factor of the learning rate at a step counted from 0: linear up, constant, then down to `floor` over the last
    `decay` steps of `steps`, linearly or as 1 - sqrt (arXiv 2405.18392).
    """
    if warmup + decay > steps:
        raise ValueError(f"warmup {warmup} and decay {decay} do not fit into {steps} steps; shorten one of them")
    if step < warmup:
        return (step + 1) / warmup
    gone = (step - (steps - decay)) / decay if decay and step > steps - decay else 0.0
    gone = min(gone, 1.0)
    return floor + (1 - floor) * (1 - (math.sqrt(gone) if shape == "sqrt" else gone))
