"""Weight-only quantisation of the linear layers inside blocks: int8 or fp8 with one scale per output row.

Norms, tables, the projector of the text taps, the timestep layers, the first and the last layer stay as they are.
Half of bf16's memory; products are computed in the input's type, so no activation is ever rounded further.
"""

import math
import mmap
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krea_model.names import BODY

__all__ = ["Kind", "QuantisedLinear", "as_kind", "dequantise", "is_target", "pack", "prepare", "quantise"]

Kind = Literal["int8", "fp8"]
"""int8: -127 to 127; fp8: e4m3, three bits of mantissa, up to 448."""

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": 448.0}
CHUNK = 2**18  # numbers quantised at a time, so that the fp32 copy of a large weight is never whole


class QuantisedLinear(nn.Linear):
    """A linear layer whose `weight` is a buffer of int8 or fp8, `out in`, and `weight_scale` fp32, `out`.

    It moves between devices as any module, but no cast of the module reaches the two.
    """

    weight_scale: Tensor

    def __init__(self, features: int, out: int, kind: Kind, bias: nn.Parameter | None = None) -> None:
        super().__init__(features, out, bias=False, device="meta")
        self.hold(
            torch.empty(out, features, dtype=DTYPES[as_kind(kind)], device="meta"), torch.empty(out, device="meta")
        )
        self.bias = bias

    def hold(self, weight: Tensor, scale: Tensor) -> None:
        """Take these as weight and scale."""
        self._parameters.pop("weight", None)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)

    @property
    def kind(self) -> Kind:
        return "int8" if self.weight.dtype == torch.int8 else "fp8"

    def forward(self, input: Tensor) -> Tensor:
        return Product.apply(input, self.weight, self.weight_scale, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        weight, scale = self._buffers.pop("weight"), self._buffers.pop("weight_scale")
        super()._apply(fn, recurse)
        assert weight is not None
        assert scale is not None
        # As integers, which `to(dtype)` leaves alone.
        self._buffers["weight"] = fn(weight.view(torch.int8)).view(weight.dtype)
        self._buffers["weight_scale"] = fn(scale.view(torch.int32)).view(scale.dtype)
        return self


class Product(torch.autograd.Function):
    """input weight^T scale + bias; the weight in the input's type is made anew for the gradient, never kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        if input.dtype == torch.float16:  # sums of whole numbers could exceed its range
            out = F.linear(input, dequantise(weight, scale, input.dtype))
        else:
            out = F.linear(input, _values(weight, input.dtype)).mul_(scale)  # the scale stays fp32
        return out if bias is None else out.add_(bias.to(out.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        grad = grads[0]
        bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return (grad * scale).to(grad.dtype) @ _values(weight, grad.dtype), None, None, bias


def as_kind(name: str) -> Kind:
    """The name itself, if it is one; else ValueError."""
    for kind in get_args(Kind):
        if name == kind:
            return kind
    raise ValueError(f'quantisation "{name}" is unknown; use "int8" or "fp8"')


def is_target(name: str) -> bool:
    """Whether the weight (or layer) of this original name is quantised: the linear layers inside blocks."""
    layer = name.removesuffix(".weight")
    return layer.startswith(("blocks.", "txtfusion.")) and layer.endswith(tuple(f".{part}" for part in BODY))


def pack(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """weight: `out in` -> the same in int8 or fp8, and the fp32 scale of each row, `out`.

    The largest entry of a row becomes the largest number of the type (symmetric); int8 rounds to nearest.
    ValueError for a weight that is not finite.
    """
    packed = torch.empty(weight.shape, dtype=DTYPES[as_kind(kind)], device=weight.device)
    scale = torch.empty(len(weight), device=weight.device)
    rows_at_once = min(len(weight), max(1, CHUNK // weight.shape[1]))
    room = _scratch((2, rows_at_once, weight.shape[1]), weight.device)
    parts = (tensor.split(rows_at_once) for tensor in (weight.detach(), packed, scale))
    for rows, kept, scales in zip(*parts, strict=True):
        full, other = room[0, : len(rows)].copy_(rows), room[1, : len(rows)]
        torch.amax(torch.abs(full, out=other), 1, out=scales)
        scales.div_(LARGEST[kind]).clamp_(min=torch.finfo(torch.float32).tiny)
        full.div_(scales[:, None])
        kept.copy_(full.round_() if kind == "int8" else full.clamp_(-LARGEST[kind], LARGEST[kind]))
    if not scale.isfinite().all():
        raise ValueError("a weight that holds NaN or infinity cannot be quantised; the checkpoint is damaged")
    return packed, scale


def dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that a quantised one stands for, `out in`."""
    return (_values(weight, torch.float32) * scale[:, None]).to(dtype)


def prepare(model: nn.Module, kind: Kind) -> None:
    """Put empty quantised layers in the places of those that are quantised, to be filled by `load_state_dict`."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and is_target(name):
            model.set_submodule(name, QuantisedLinear(layer.in_features, layer.out_features, kind, layer.bias))


def quantise(model: nn.Module, kind: Kind) -> None:
    """Quantise a model in memory, layer by layer; ValueError if it has adapters or is quantised already.

    `weights.load(path, quantise=kind)` does so while it reads, and never holds the model in full precision.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and is_target(n)}
    odd = [name for name, layer in layers.items() if type(layer) is not nn.Linear]
    if odd or not layers:
        raise ValueError(f"{odd[0] if odd else 'the model'} has nothing to quantise: give plain layers, without LoRAs")
    for name, layer in layers.items():
        packed = QuantisedLinear(layer.in_features, layer.out_features, kind, layer.bias)
        packed.hold(*pack(layer.weight, kind))
        model.set_submodule(name, packed)


def _scratch(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Room for fp32 numbers that is given back when it is dropped.

    On a CPU it is a map of its own. From the heap of the C library (glibc 2.36), freed pieces stay behind between the
    packed weights that live on: reading a model of 332 MB peaked at 10 to 156 MB above it, now at 16 with a bf16 file.
    """
    if device.type != "cpu":
        return torch.empty(shape, device=device)
    return torch.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), dtype=torch.float32).view(shape)


def _values(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Quantised numbers in a wider type, without the scale; exact in all of fp16, bf16 and fp32."""
    if weight.dtype == torch.int8 or weight.device.type != "cpu":
        return weight.to(dtype)
    # The CPU converts fp8 element by element. The same bits, moved into an fp16, are the number divided by 256.
    bits = weight.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
    return bits.view(torch.float16).to(dtype).mul_(256)
