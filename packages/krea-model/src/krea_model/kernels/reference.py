"""What every kernel computes, in plain torch: the definition of correct, and what runs on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from krea_model.spans import Spans

__all__ = ["EPS", "gate_output", "gated_residual", "norm_rotate", "rms_norm", "rms_norm_modulate", "swiglu"]

EPS = 1e-5


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) * (1 + weight) over the last axis, computed in fp32 and rounded to the dtype of x."""
    if x.dtype == torch.float32:
        return x * _inverse_rms(x) * (1 + weight.float())
    return F.rms_norm(x.float(), x.shape[-1:], 1 + weight.float(), EPS).to(x.dtype)


def rms_norm_modulate(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, spans: Spans) -> Tensor:
    """Norm with a zero-centred weight, then the scale and shift of the token's sample: (1 + scale) norm(x) + shift.

    x: `s f`, weight: `f`, scale and shift: `b f`, one row per sample of `spans`. The norm is rounded to the dtype of x
    and the rest is in that dtype, as in diffusers; in fp32 the two factors are joined, which saves passes over memory.
    """
    if x.dtype == scale.dtype == shift.dtype == torch.float32:
        unit, factor = _samples(x * _inverse_rms(x), spans), (1 + weight.float()) * (1 + scale)
        return torch.addcmul(_each(shift, spans), unit, _each(factor, spans)).reshape(x.shape)
    normed = _samples(rms_norm(x, weight), spans)
    return (normed * _each(1 + scale, spans) + _each(shift, spans)).reshape(x.shape)


def norm_rotate(x: Tensor, weight: Tensor, rope: Tensor) -> Tensor:
    """Norm of each head with a zero-centred weight, then consecutive pairs are rotated by the token's angles.

    x: `s n d`, weight: `d`, rope: `s d/2 2` (cos, sin), fp32. The norm is rounded to the dtype of x, then rotated in
    fp32 and rounded again. No gradient is asked of `rope`.
    """
    normed = rms_norm(x, weight).float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # compilers do not fuse complex numbers
        (a, b), (cos, sin) = normed.unbind(-1), rope[:, None].unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
    turned = torch.view_as_complex(normed) * torch.view_as_complex(rope)[:, None]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def gate_output(out: Tensor, gate: Tensor) -> Tensor:
    """Attention output times the sigmoid of its gate, both `s f`: what goes into the output projection."""
    return _product(torch.sigmoid(gate), out)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both `s m`: what goes into the down projection."""
    return _product(F.silu(gate), up)


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor, spans: Spans) -> Tensor:
    """x plus a branch times the gate of the token's sample; x and branch: `s f`, gate: `b f`."""
    base, added, factor = _samples(x, spans), _samples(branch, spans), _each(gate, spans)
    if x.dtype == branch.dtype == gate.dtype == torch.float32:
        return torch.addcmul(base, factor, added).reshape(x.shape)
    return (base + factor * added).reshape(x.shape)


def _inverse_rms(x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # one pass where a mean of squares takes three
    return torch.rsqrt(length.square() / x.shape[-1] + EPS)


def _product(fresh: Tensor, other: Tensor) -> Tensor:
    """fresh * other; the first, made by the caller, is overwritten if no gradient asks for it."""
    return fresh * other if torch.is_grad_enabled() or fresh.dtype != other.dtype else fresh.mul_(other)


def _samples(x: Tensor, spans: Spans) -> Tensor:
    """`s f` -> `b n f` where all samples have n tokens."""
    return x.unflatten(0, (len(spans.lengths), -1)) if _together(spans) else x


def _each(value: Tensor, spans: Spans) -> Tensor:
    """`b f`, a row per sample -> what fits `_samples`."""
    return value[:, None] if _together(spans) else value.index_select(0, spans.owner)


def _together(spans: Spans) -> bool:
    """Whether to broadcast over samples; a compiled graph must not depend on lengths, or new ones recompile it."""
    return not torch.compiler.is_compiling() and spans.equal
