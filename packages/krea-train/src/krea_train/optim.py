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
from torch.optim.adamw import adamw as adamw_update

from krea_train.muon import Muon, Stack, stacks
from krea_train.parallel import local, place

__all__ = ["AdamW", "Muon", "Optimizer", "decays", "is_hidden", "warmup_stable_decay"]

HIDDEN = re.compile(r"(^|\.)(transformer_)?blocks\.\d+\.(attn|mlp|ff)\..*\.?weight$")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """Settings of AdamW (arXiv 1711.05101)."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes it: a matrix of attention or MLP in a main block, by the released or diffusers' names.

    Left to AdamW: first and last linear, time and text MLPs, text fusion with its 1 x taps projector, norms, biases and
    modulation tables, which are matrices in some layouts (Krea 2 technical report, section "Pretraining").
    """
    return parameter.ndim == 2 and min(parameter.shape) > 1 and "norm" not in name and bool(HIDDEN.search(name))


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices and zero-centred norm scales, not to biases and modulation tables.

    Decay pulls a zero-centred scale toward plain normalisation (Krea 2 technical report, section "Architecture").
    """
    return not name.endswith((".bias", ".lin", "scale_shift_table"))


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
            group |= {"lr": factor * settings.lr, "weight_decay": decay, "stacks": self._start(named, settings)}
            self.param_groups.append(group)

    def _start(self, named: Mapping[str, nn.Parameter], settings: AdamW | Muon) -> list[Stack]:
        if isinstance(settings, Muon):
            found = stacks(named)
            self.state |= {name: {"momentum": view} for stack in found for name, view in stack.views().items()}
            return found
        for name, p in named.items():
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.state[name] = {"step": step, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        return []

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
            if isinstance(group["settings"], AdamW):
                self._step_adamw(group)
            for stack in group["stacks"]:
                skip = self.found_inf if self.found_inf is not None else stack.momentum.new_zeros(())
                stack.step(group["settings"], group["lr"], group["weight_decay"], skip)

    def _step_adamw(self, group: dict[str, Any]) -> None:
        members = [(p, self.state[n]) for n, p in zip(group["names"], group["params"], strict=True)]
        members = [(p, state) for p, state in members if p.grad is not None]
        if not members:
            return
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
            for stack in group["stacks"]:
                stack.drop(prefix)
        self.state = {name: state for name, state in self.state.items() if not name.startswith(prefix)}


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
