"""The operations of `reference` as Triton kernels: one pass over memory forward, one backward, rounded once.

Each is an operator of torch's library with a derivative and a shape rule, so autograd and compilers treat it as any
other. Sums over tokens have a fixed order: gradients repeat bit for bit on one device. All arithmetic is in fp32.
Triton launches on the current device, so the device of the tensors is made that.
"""

from typing import Any

import torch
from torch import Tensor

from krea_model.spans import Spans

try:
    from krea_model.kernels import triton_gates, triton_heads, triton_norm
except ImportError as error:
    raise ImportError(f"Triton cannot be imported ({error}); install krea-model[cuda]") from error

__all__ = ["gate_output", "gated_residual", "norm_rotate", "rms_norm_modulate", "swiglu"]

Grads = tuple[Tensor | None, ...]


def rms_norm_modulate(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, spans: Spans) -> Tensor:
    """See `reference.rms_norm_modulate`; ValueError where shapes do not fit."""
    rows = (spans.ends.shape[0] - 1, *x.shape[1:])
    _confirm(x, (*spans.owner.shape, *weight.shape), scale, rows, shift, rows)
    return _norm(x, weight, scale, shift, spans.owner, spans.ends)


def norm_rotate(x: Tensor, weight: Tensor, rope: Tensor) -> Tensor:
    """See `reference.norm_rotate`; ValueError where shapes do not fit."""
    _confirm(x, (*x.shape[:2], *weight.shape), rope, (x.shape[0], x.shape[2] // 2, 2))
    return _heads(x, weight, rope)


def gate_output(out: Tensor, gate: Tensor) -> Tensor:
    """See `reference.gate_output`; ValueError where shapes do not fit."""
    _confirm(gate, out.shape)
    return _activate(out, gate, False)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `reference.swiglu`; ValueError where shapes do not fit."""
    _confirm(up, gate.shape)
    return _activate(up, gate, True)


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor, spans: Spans) -> Tensor:
    """See `reference.gated_residual`; ValueError where shapes do not fit."""
    whole = (*spans.owner.shape, *x.shape[1:])
    _confirm(x, whole, branch, whole, gate, (spans.ends.shape[0] - 1, *x.shape[1:]))
    return _residual(x, branch, gate, spans.owner, spans.ends)


def _confirm(*given: Any) -> None:
    """Tensors, each followed by the shape it must have: a kernel would read beyond the end of one that differs."""
    for tensor, wanted in zip(given[::2], given[1::2], strict=True):
        if tuple(tensor.shape) != tuple(wanted):
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} does not fit the others; give {tuple(wanted)}")


def _result(x: Tensor, *others: Tensor) -> Tensor:
    """An empty dense tensor like x, in the dtype that torch would give a product of all."""
    dtype = x.dtype
    for other in others:
        dtype = torch.promote_types(dtype, other.dtype)
    return torch.empty(x.shape, dtype=dtype, device=x.device)


@torch.library.custom_op("krea_model::rms_norm_modulate", mutates_args=())
def _norm(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, owner: Tensor, ends: Tensor) -> Tensor:
    out = _result(x, scale, shift)
    with torch.cuda.device_of(x):
        triton_norm.forward(x, weight, scale, shift, owner, out)
    return out


@torch.library.custom_op("krea_model::rms_norm_modulate_backward", mutates_args=())
def _norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor, owner: Tensor, ends: Tensor, shift: torch.dtype, small: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`small` asks for more than the gradient of x; `shift` is the dtype of its gradient."""
    shape = scale.shape if small else (0, 0)
    sums = tuple(torch.empty(shape, dtype=d, device=x.device) for d in (torch.float32, scale.dtype, shift))
    with torch.cuda.device_of(x):
        dx = triton_norm.backward(dy, x, weight, scale, owner, ends, sums if small else None)
    return dx, sums[0].sum(0).to(weight.dtype), sums[1], sums[2]


@_norm.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, owner: Tensor, ends: Tensor) -> Tensor:
    return _result(x, scale, shift)


@_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor, owner: Tensor, ends: Tensor, shift: torch.dtype, small: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = scale.shape if small else (0, 0)
    weights = scale.new_empty(rows[1], dtype=weight.dtype)
    return _result(x), weights, scale.new_empty(rows), scale.new_empty(rows, dtype=shift)


def _norm_saved(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, weight, scale, shift, owner, ends = inputs
    ctx.save_for_backward(x, weight, scale, owner, ends)
    ctx.shift = shift.dtype


def _norm_grads(ctx: Any, dy: Tensor) -> Grads:
    needed = ctx.needs_input_grad
    grads = _norm_backward(dy, *ctx.saved_tensors, ctx.shift, any(needed[1:4]))
    return *(grad if need else None for grad, need in zip(grads, needed, strict=False)), None, None


_norm.register_autograd(_norm_grads, setup_context=_norm_saved)


@torch.library.custom_op("krea_model::norm_rotate", mutates_args=())
def _heads(x: Tensor, weight: Tensor, rope: Tensor) -> Tensor:
    out = _result(x)
    with torch.cuda.device_of(x):
        triton_heads.forward(x, weight, rope, out)
    return out


@torch.library.custom_op("krea_model::norm_rotate_backward", mutates_args=())
def _heads_backward(dy: Tensor, x: Tensor, weight: Tensor, rope: Tensor, small: bool) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        dx, dweight = triton_heads.backward(dy, x, weight, rope, small)
    return dx, dweight.to(weight.dtype)


@_heads.register_fake
def _(x: Tensor, weight: Tensor, rope: Tensor) -> Tensor:
    return _result(x)


@_heads_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, rope: Tensor, small: bool) -> tuple[Tensor, Tensor]:
    return _result(x), _result(weight)


def _heads_saved(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _heads_grads(ctx: Any, dy: Tensor) -> Grads:
    dx, dweight = _heads_backward(dy, *ctx.saved_tensors, ctx.needs_input_grad[1])
    return dx, dweight if ctx.needs_input_grad[1] else None, None


_heads.register_autograd(_heads_grads, setup_context=_heads_saved)


@torch.library.custom_op("krea_model::activate", mutates_args=())
def _activate(value: Tensor, gate: Tensor, silu: bool) -> Tensor:
    out = _result(value, gate)
    with torch.cuda.device_of(value):
        triton_gates.activate(value, gate, out, silu)
    return out


@torch.library.custom_op("krea_model::activate_backward", mutates_args=())
def _activate_backward(dy: Tensor, value: Tensor, gate: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(value):
        return triton_gates.activate_backward(dy, value, gate, silu)


@_activate.register_fake
def _(value: Tensor, gate: Tensor, silu: bool) -> Tensor:
    return _result(value, gate)


@_activate_backward.register_fake
def _(dy: Tensor, value: Tensor, gate: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    return _result(value), _result(gate)


def _activate_saved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.silu = inputs[2]


def _activate_grads(ctx: Any, dy: Tensor) -> Grads:
    return *_activate_backward(dy, *ctx.saved_tensors, ctx.silu), None


_activate.register_autograd(_activate_grads, setup_context=_activate_saved)


@torch.library.custom_op("krea_model::gated_residual", mutates_args=())
def _residual(x: Tensor, branch: Tensor, gate: Tensor, owner: Tensor, ends: Tensor) -> Tensor:
    out = _result(x, branch, gate)
    with torch.cuda.device_of(x):
        triton_gates.residual(x, branch, gate, owner, out)
    return out


@torch.library.custom_op("krea_model::gated_residual_backward", mutates_args=())
def _residual_backward(
    dy: Tensor, branch: Tensor, gate: Tensor, owner: Tensor, ends: Tensor, small: bool
) -> tuple[Tensor, Tensor]:
    dgate = torch.empty(gate.shape if small else (0, 0), dtype=gate.dtype, device=gate.device)
    with torch.cuda.device_of(branch):
        return triton_gates.residual_backward(dy, branch, gate, owner, ends, dgate if small else None), dgate


@_residual.register_fake
def _(x: Tensor, branch: Tensor, gate: Tensor, owner: Tensor, ends: Tensor) -> Tensor:
    return _result(x, branch, gate)


@_residual_backward.register_fake
def _(dy: Tensor, branch: Tensor, gate: Tensor, owner: Tensor, ends: Tensor, small: bool) -> tuple[Tensor, Tensor]:
    return _result(branch), gate.new_empty(gate.shape if small else (0, 0))


def _residual_saved(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])
    ctx.dtype = inputs[0].dtype


def _residual_grads(ctx: Any, dy: Tensor) -> Grads:
    need = ctx.needs_input_grad
    if not (need[1] or need[2]):
        return dy.to(ctx.dtype), None, None, None, None
    dbranch, dgate = _residual_backward(dy, *ctx.saved_tensors, need[2])
    return dy.to(ctx.dtype), dbranch, dgate if need[2] else None, None, None


_residual.register_autograd(_residual_grads, setup_context=_residual_saved)
