"""Zero-centred RMS norm with scale and shift in one pass over memory, as a Triton kernel."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from krea_model.kernels.reference import EPS

__all__ = ["rms_norm_modulate"]


@triton.jit
def _forward(x, weight, scale, shift, sample, out, rstd, features, eps, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < features
    values = tl.load(x + token * features + columns, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(values * values, 0) / features + eps)
    row = tl.load(sample + token) * features
    w = 1.0 + tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 + tl.load(scale + row + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(shift + row + columns, mask=inside, other=0.0).to(tl.float32)
    result = values * inverse * w * s + b
    tl.store(out + token * features + columns, result.to(out.dtype.element_ty), mask=inside)
    tl.store(rstd + token, inverse)


class _RMSNormModulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, sample: Tensor) -> Tensor:
        x, weight, scale, shift = (t.contiguous() for t in (x, weight, scale, shift))
        tokens, features = x.shape
        out, rstd = torch.empty_like(x), torch.empty(tokens, dtype=torch.float32, device=x.device)
        block = triton.next_power_of_2(features)
        _forward[(tokens,)](x, weight, scale, shift, sample, out, rstd, features, EPS, block)  # pyright: ignore[reportArgumentType]
        ctx.save_for_backward(x, weight, scale, sample, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Not fused yet: the derivative written out in torch, from the saved inverse deviation."""
        x, weight, scale, sample, rstd = ctx.saved_tensors
        dy, unit = grad_outputs[0].float(), x.float() * rstd[:, None]
        w, s = 1 + weight.float(), 1 + scale.float()[sample]
        dunit = dy * s * w
        dx = rstd[:, None] * (dunit - unit * (dunit * unit).mean(-1, keepdim=True))
        zeros = torch.zeros(scale.shape, dtype=torch.float32, device=x.device)
        dscale, dshift = zeros.index_add(0, sample, dy * unit * w), zeros.index_add(0, sample, dy)
        dweight = (dy * s * unit).sum(0)
        return dx.to(x.dtype), dweight.to(weight.dtype), dscale.to(scale.dtype), dshift.to(scale.dtype), None


def rms_norm_modulate(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, sample: Tensor) -> Tensor:
    """See `reference.rms_norm_modulate`; computed in fp32 throughout and rounded once."""
    out = _RMSNormModulate.apply(x, weight, scale, shift, sample)
    assert isinstance(out, Tensor)
    return out
