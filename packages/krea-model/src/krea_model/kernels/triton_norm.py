"""RMS norm with a zero-centred weight, scale and shift per sample: one pass over memory forward and one backward.

Backward, each program walks over consecutive tokens and keeps the sums over tokens that the small gradients need. It
writes one partial sum for every sample it meets, to row program + sample: along the tokens one of the two grows at
every step, so no row is written twice and no atomic addition is needed. A second, small kernel adds up each sample's
rows.
"""

# Triton declares compile-time arguments as constexpr and takes plain numbers.
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from krea_model.kernels.launch import along_rows, options, rows_per_program, width
from krea_model.kernels.reference import EPS
from krea_model.kernels.triton_segments import COLUMNS, ROWS, sum_of_sample

__all__ = ["backward", "forward"]


@triton.jit
def forward_kernel(
    x, weight, scale, shift, owner, out, features, x_stride, scale_stride, shift_stride, eps, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < features
    values = tl.load(x + token * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    sample = tl.load(owner + token)
    w = 1.0 + tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 + tl.load(scale + sample * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(shift + sample * shift_stride + columns, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, 0) / features + eps)
    result = values * inverse * (w * s) + b
    tl.store(out + token * features + columns, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "rows", "slots"])
def backward_kernel(
    x, weight, scale, dy, owner, ends, dx, partials,
    tokens, features, rows, slots, x_stride, scale_stride, eps, REDUCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < features
    token = program * rows
    stop = tl.minimum(token + rows, tokens)
    while token < stop:
        sample = tl.load(owner + token)
        end = tl.minimum(tl.load(ends + sample + 1).to(tl.int64), stop)
        s = 1.0 + tl.load(scale + sample * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
        factor = s * (1.0 + tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32))
        by_unit = tl.zeros([BLOCK], tl.float32)
        by_one = tl.zeros([BLOCK], tl.float32)
        next_x = tl.load(x + token * x_stride + columns, mask=inside, other=0.0)
        next_dy = tl.load(dy + token * features + columns, mask=inside, other=0.0)
        while token < end:
            values, slope = next_x.to(tl.float32), next_dy.to(tl.float32)
            more = columns < tl.where(
                token + 1 < end, features, 0
            )  # the next row is asked for before this one is worked on
            next_x = tl.load(x + (token + 1) * x_stride + columns, mask=more, other=0.0)
            next_dy = tl.load(dy + (token + 1) * features + columns, mask=more, other=0.0)
            inverse = tl.rsqrt(tl.sum(values * values, 0) / features + eps)
            along = tl.sum(slope * factor * values, 0) * inverse * inverse * inverse / features
            tl.store(
                dx + token * features + columns,
                (inverse * slope * factor - values * along).to(dx.dtype.element_ty),
                mask=inside,
            )
            if REDUCE:
                by_unit += slope * values * inverse
                by_one += slope
            token += 1
        if REDUCE:
            place = partials + (program + sample) * features + columns
            tl.store(place, by_unit, mask=inside)
            tl.store(place + slots * features, by_one, mask=inside)


@triton.jit(do_not_specialize=["rows", "slots"])
def collect_kernel(
    partials, ends, weight, scale, dweight, dscale, dshift,
    features, rows, slots, scale_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < features
    by_unit = sum_of_sample(partials, ends, sample, columns, features, rows, ROWS, COLUMNS)
    by_one = sum_of_sample(partials + slots * features, ends, sample, columns, features, rows, ROWS, COLUMNS)
    w = 1.0 + tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 + tl.load(scale + sample * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    place = sample * features + columns
    tl.store(dweight + place, by_unit * s, mask=inside)
    tl.store(dscale + place, (by_unit * w).to(dscale.dtype.element_ty), mask=inside)
    tl.store(dshift + place, by_one.to(dshift.dtype.element_ty), mask=inside)


def forward(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, owner: Tensor, out: Tensor) -> None:
    """Fill out: `s f`, dense."""
    x, weight, scale, shift = (along_rows(t) for t in (x, weight, scale, shift))
    block = width(x.shape[1])
    strides = (x.stride(0), scale.stride(0), shift.stride(0))
    forward_kernel[(x.shape[0],)](
        x, weight, scale, shift, owner, out, x.shape[1], *strides, EPS, BLOCK=block, **options(block)
    )


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor, owner: Tensor, ends: Tensor, small: tuple[Tensor, ...] | None
) -> Tensor:
    """The gradient of x; `small` (of weight: `b f` in fp32, one share per sample; of scale; of shift) is filled too."""
    x, weight, scale, dy = along_rows(x), along_rows(weight), along_rows(scale), dy.contiguous()
    (tokens, features), device = x.shape, x.device
    dx = torch.empty(x.shape, dtype=x.dtype, device=device)
    rows, block = rows_per_program(tokens, device), width(features)
    programs = triton.cdiv(tokens, rows)
    slots = programs + scale.shape[0] if small else 0
    partials = torch.empty(2, slots, features, dtype=torch.float32, device=device)
    backward_kernel[(programs,)](
        x, weight, scale, dy, owner, ends, dx, partials, tokens, features, rows, slots, x.stride(0), scale.stride(0),
        EPS, REDUCE=small is not None, BLOCK=block, **options(block, 8),
    )  # fmt: skip
    if small:
        collect_kernel[(scale.shape[0], triton.cdiv(features, COLUMNS))](
            partials, ends, weight, scale, *small, features, rows, slots, scale.stride(0),
            ROWS=ROWS, COLUMNS=COLUMNS, **options(ROWS * COLUMNS),
        )  # fmt: skip
    return dx
