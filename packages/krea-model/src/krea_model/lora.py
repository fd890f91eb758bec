"""Low-rank adapters: add them to linear layers, scale them, fold them into the weights and take them out again.

A LoRA is a mapping from the original name of a linear layer to its `LowRank`. Files: `lora_files`.
Source: arXiv 2106.09685.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krea_model.inputs import finite, seed_list
from krea_model.plain import is_number, is_whole
from krea_model.quantise import QuantisedLinear

__all__ = [
    "ALL",
    "ATTENTION",
    "Adapted",
    "AdaptedQuantised",
    "LowRank",
    "add",
    "attach",
    "detach",
    "extract",
    "fold_in",
    "rescale",
    "restore",
    "stack",
]

ATTENTION = ("wq", "wk", "wv", "wo", "attn.gate")
"""Targets for long runs: attention alone, with a higher rank."""

STRENGTH = "give a number: 0 has no effect, 1 is as trained"

ALL = (
    *("first", "tmlp.0", "tmlp.2", "tproj.1", "txtfusion.projector", "txtmlp.1", "txtmlp.3"),
    *("wq", "wk", "wv", "wo", "gate", "mlp.up", "mlp.down", "last.linear"),
)
"""Targets of the official recipe: every linear layer of the model (`gate` is both the attention's and the MLP's)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """The update of one weight, alpha / r * b @ a; a: `r in`, b: `out r`."""

    a: Tensor
    b: Tensor
    alpha: float

    def __post_init__(self) -> None:
        if not all(isinstance(one, Tensor) and one.is_floating_point() for one in (self.a, self.b)):
            raise ValueError("low-rank factors that are no tensors of floating-point numbers; give those of a LoRA")
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise ValueError(
                f"low-rank factors of shapes {tuple(self.a.shape)} and {tuple(self.b.shape)} do not multiply; "
                "they must be (rank, in) and (out, rank)"
            )
        if not len(self.a) or not is_number(self.alpha) or self.alpha == 0:
            raise ValueError(
                f"an adapter of rank {len(self.a)} and alpha {self.alpha!r} has no effect; neither may be 0"
            )

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight that it belongs to."""
        return (self.b.shape[0], self.a.shape[1])

    def delta(self) -> Tensor:
        """The update as a matrix, `out in`, fp32."""
        return self.scale * (self.b.detach().float() @ self.a.detach().float())


class Adapted(nn.Linear):
    """A linear layer with a low-rank branch beside it; the weight keeps its name and its tensor."""

    def __init__(self, linear: nn.Linear, adapter: LowRank, strength: float = 1.0) -> None:
        nn.Linear.__init__(self, linear.in_features, linear.out_features, bias=False, device="meta")
        self.bias = linear.bias
        self._take(linear)
        self.lora_A, self.lora_B = nn.Parameter(adapter.a), nn.Parameter(adapter.b)
        self.alpha, self.strength = adapter.alpha, strength

    @property
    def adapter(self) -> LowRank:
        """The branch as data; its tensors are those being trained."""
        return LowRank(a=self.lora_A, b=self.lora_B, alpha=self.alpha)

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        branch = F.linear(F.linear(input.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return out + (self.strength * self.adapter.scale * branch).to(out.dtype)

    def plain(self) -> nn.Linear:
        """The layer without its branch."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer

    def _take(self, linear: nn.Linear) -> None:
        self.weight = linear.weight


class AdaptedQuantised(Adapted, QuantisedLinear):
    """The same beside a quantised layer: its weight stays in int8 or fp8, the branch in the precision of the LoRA."""

    def plain(self) -> QuantisedLinear:
        """The quantised layer without its branch."""
        layer = QuantisedLinear(self.in_features, self.out_features, self.kind, self.bias)
        layer.hold(self.weight, self.weight_scale)
        return layer

    def _take(self, linear: nn.Linear) -> None:
        assert isinstance(linear, QuantisedLinear)
        self.hold(linear.weight, linear.weight_scale)


def add(
    model: nn.Module, targets: Sequence[str] = ALL, *, rank: int = 32, alpha: float | None = None, seed: int = 0
) -> list[nn.Parameter]:
    """Freeze the model and give the targets fresh adapters, of no effect yet; returns what is to be trained.

    targets: names of linear layers or their last parts; alpha: default the rank.
    """
    if not is_whole(rank, 1):
        raise ValueError(f"rank {rank!r} is no positive whole number; 4 to 128 are usual")
    (seed,) = seed_list([seed], 1)
    generator = torch.Generator().manual_seed(seed)
    fresh = {}
    for name in _select(model, targets):
        weight = _linear(model, name).weight
        bound = 1 / math.sqrt(weight.shape[1])
        a = torch.empty(rank, weight.shape[1]).uniform_(-bound, bound, generator=generator).to(weight.device)
        fresh[name] = LowRank(
            a=a, b=torch.zeros(weight.shape[0], rank, device=weight.device), alpha=rank if alpha is None else alpha
        )
    model.requires_grad_(False)
    attach(model, fresh)
    return [p for _, layer in _adapted(model) for p in (layer.lora_A, layer.lora_B)]


def attach(model: nn.Module, lora: Mapping[str, LowRank], strength: float = 1.0) -> None:
    """Put adapters beside the model's linear layers, quantised or not, on the device of each.

    ValueError, and no change, if one finds no layer of its shape or a layer that has one already.
    """
    strength = finite(strength, "strength", STRENGTH)
    _check_fit(model, lora)
    taken = [name for name in lora if isinstance(_linear(model, name), Adapted)]
    if taken:
        raise ValueError(f"{taken[0]} has an adapter already; join several with `stack`, or `detach` them first")
    for name, adapter in lora.items():
        linear = _linear(model, name)
        kind = AdaptedQuantised if isinstance(linear, QuantisedLinear) else Adapted
        model.set_submodule(name, kind(linear, _beside(adapter, linear.weight.device), strength))


def detach(model: nn.Module) -> dict[str, LowRank]:
    """Take all adapters off, leaving the weights as they were before `attach`; returns the adapters."""
    taken = extract(model)
    for name, layer in list(_adapted(model)):
        model.set_submodule(name, layer.plain())
    return taken


def extract(model: nn.Module) -> dict[str, LowRank]:
    """The adapters that the model carries now, by layer, sharing their tensors."""
    return {
        name: LowRank(a=layer.lora_A.detach(), b=layer.lora_B.detach(), alpha=layer.alpha)
        for name, layer in _adapted(model)
    }


def rescale(model: nn.Module, strength: float) -> None:
    """Set how strongly the attached adapters act: 0 not at all, 1 as trained."""
    strength = finite(strength, "strength", STRENGTH)
    layers = [layer for _, layer in _adapted(model)]
    if not layers:
        raise ValueError("the model carries no adapters to scale; `attach` them first")
    for layer in layers:
        layer.strength = strength


def stack(loras: Sequence[tuple[Mapping[str, LowRank], float]]) -> dict[str, LowRank]:
    """Several LoRAs with their strengths as one, in fp32: their ranks lie side by side, so nothing is approximated.

    ValueError for none, and for LoRAs of models whose layers differ in shape.
    """
    if not loras or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in loras):
        raise ValueError(f"{len(loras)} LoRAs to stack; give at least one, each as a pair of the LoRA and its strength")
    for _, strength in loras:
        finite(strength, "strength", STRENGTH)
    names = dict.fromkeys(name for lora, _ in loras for name in lora)
    stacked = {}
    for name in names:
        parts = [(lora[name], strength) for lora, strength in loras if name in lora]
        shapes = list(dict.fromkeys(part.shape for part, _ in parts))
        if len(shapes) > 1:
            raise ValueError(
                f"LoRAs of different models: {name} is {shapes[0]} in one and {shapes[1]} in another; stack those of "
                "one model"
            )
        a = torch.cat([part.a.float() for part, _ in parts])
        b = torch.cat([strength * part.scale * part.b.float() for part, strength in parts], 1)
        stacked[name] = LowRank(a=a, b=b, alpha=len(a))
    return stacked


@torch.no_grad()
def fold_in(model: nn.Module, lora: Mapping[str, LowRank], strength: float = 1.0) -> dict[str, Tensor]:
    """Add the updates to the weights (in fp32, rounded once); returns the old weights, on the CPU, for `restore`.

    ValueError, and no change, if an update fits no layer, or the layer is quantised or not in memory.
    """
    strength = finite(strength, "strength", STRENGTH)
    _check_fit(model, lora)
    for name in lora:
        layer = _linear(model, name)
        if isinstance(layer, QuantisedLinear):
            raise ValueError(
                f"{name} is quantised to {layer.kind}, where an update would be rounded away: `attach` the LoRA instead"
            )
        if layer.weight.is_meta:
            raise ValueError(f"{name} is streamed from a file that must not change: `attach` the LoRA instead")
    kept = {}
    for name, adapter in lora.items():
        weight = _linear(model, name).weight
        kept[name] = weight.detach().to("cpu", copy=True)
        weight.copy_(weight.float() + strength * adapter.delta().to(weight.device))
    return kept


@torch.no_grad()
def restore(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Undo `fold_in`, bit for bit; ValueError, and no change, for weights that are not those of this model."""
    shapes = _shapes(model)
    wrong = [name for name, weight in kept.items() if shapes.get(name) != tuple(weight.shape)]
    if wrong:
        there = shapes.get(wrong[0], "no such layer")
        raise ValueError(
            f"{wrong[0]} {tuple(kept[wrong[0]].shape)} where the model has {there}; give what `fold_in` returned for it"
        )
    for name, weight in kept.items():
        _linear(model, name).weight.copy_(weight)


def _beside(adapter: LowRank, device: torch.device) -> LowRank:
    if device.type == "meta":  # the weight is streamed; the branch is sent along with it
        return adapter
    return LowRank(a=adapter.a.to(device), b=adapter.b.to(device), alpha=adapter.alpha)


def _adapted(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, Adapted))


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _select(model: nn.Module, targets: Sequence[str]) -> list[str]:
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    idle = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if idle or not targets:
        raise ValueError(f"targets {idle or list(targets)} match no linear layer; the layers end in {', '.join(ALL)}")
    return [name for name in names if any(f".{name}".endswith(f".{target}") for target in targets)]


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def _check_fit(model: nn.Module, lora: Mapping[str, LowRank]) -> None:
    odd = [type(one).__name__ for one in lora.values()] if isinstance(lora, Mapping) else [type(lora).__name__]
    if not isinstance(lora, Mapping) or not all(isinstance(one, LowRank) for one in lora.values()):
        raise ValueError(f"a LoRA of type {odd[0]}; give adapters by layer, as `lora_files.read` does")
    shapes = _shapes(model)
    wrong = [
        f"{name} {adapter.shape} where the model has {shapes.get(name, 'no such layer')}"
        for name, adapter in lora.items()
        if shapes.get(name) != adapter.shape
    ]
    if wrong or not lora:
        first = "; ".join(wrong[:3]) or "it is empty"
        raise ValueError(f"this LoRA is for another model: {len(wrong)} of {len(lora)} layers do not fit ({first})")
