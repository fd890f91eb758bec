"""What every kernel computes, in plain torch: the definition of correct, and what runs on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from krea_model.spans import Spans

__all__ = ["EPS", "gate_output", "gated_residual", "norm_rotate", "rms_norm_modulate", "swiglu"]

EPS = 1e-5


def rms_norm_modulate(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, spans: Spans) -> Tensor:
    """Norm with a zero-centred weight, then the scale and shift of the token's sample: (1 + scale) norm(x) + shift.

    x: `s f`, weight: `f`, scale and shift: `b f`, one row per sample of `spans`. The norm, x / rms(x) * (1 + weight),
    is computed in fp32 and rounded to the dtype of x; the rest is in that dtype, as in diffusers.
    """
    normed = _norm(x, weight)
    if _together(spans):
        rows = normed.unflatten(0, (len(spans.lengths), -1))
        return (rows * (1 + scale)[:, None] + shift[:, None]).flatten(0, 1)
    return normed * (1 + scale).index_select(0, spans.owner) + shift.index_select(0, spans.owner)


def norm_rotate(x: Tensor, weight: Tensor, rope: Tensor) -> Tensor:
    """Norm of each head with a zero-centred weight, then consecutive pairs are rotated by the token's angles.

    x: `s n d`, weight: `d`, rope: `s d/2 2` (cos, sin), fp32. The norm is rounded to the dtype of x, then rotated in
    fp32 and rounded again. No gradient is asked of `rope`.
    """
    normed = _norm(x, weight).float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # compilers do not fuse complex numbers
        (a, b), (cos, sin) = normed.unbind(-1), rope[:, None].unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
    turned = torch.view_as_complex(normed) * torch.view_as_complex(rope)[:, None]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def gate_output(out: Tensor, gate: Tensor) -> Tensor:
    """Attention output times the sigmoid of its gate, both `s f`: what goes into the output projection."""
    return out * torch.sigmoid(gate)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both `s m`: what goes into the down projection."""
    return F.silu(gate) * up


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor, spans: Spans) -> Tensor:
    """x plus a branch times the gate of the token's sample; x and branch: `s f`, gate: `b f`."""
    if _together(spans):
        shape = (len(spans.lengths), -1)
        return (x.unflatten(0, shape) + gate[:, None] * branch.unflatten(0, shape)).flatten(0, 1)
    return x + gate.index_select(0, spans.owner) * branch


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], 1 + weight.float(), EPS).to(x.dtype)


def _together(spans: Spans) -> bool:
    """Whether to broadcast over samples; a compiled graph must not depend on lengths, or new ones recompile it."""
    return not torch.compiler.is_compiling() and spans.equal
