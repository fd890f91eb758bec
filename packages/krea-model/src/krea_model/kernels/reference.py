"""What every kernel computes, in plain torch: the definition of correct."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gate_output", "rms_norm_modulate", "rotate", "swiglu"]

EPS = 1e-5


def rms_norm_modulate(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, sample: Tensor) -> Tensor:
    """Norm with a zero-centred weight, then the scale and shift of the token's sample: (1 + scale) norm(x) + shift.

    x: `s f`, weight: `f`, scale and shift: `b f`, sample: `s`, the row of scale and shift for each token. The norm is
    computed in fp32 and rounded to the dtype of x.
    """
    normed = F.rms_norm(x.float(), x.shape[-1:], 1 + weight.float(), EPS).to(x.dtype)
    return normed * (1 + scale[sample]) + shift[sample]


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate consecutive pairs of each head by their angles; x: `s n d`, rope: `s d/2 2` (cos, sin); fp32 inside."""
    cos, sin = rope[:, None, :, 0], rope[:, None, :, 1]
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def gate_output(out: Tensor, gate: Tensor) -> Tensor:
    """Attention output times the sigmoid of its gate, both `s f`: what goes into the output projection."""
    return out * torch.sigmoid(gate)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, `s f`: what goes into the down projection."""
    return F.silu(gate) * up
