"""A tensor times the sigmoid or SiLU of another, and a residual with one gate per sample: forward and backward."""

# Triton declares compile-time arguments as constexpr and takes plain numbers.
# pyright: reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from krea_model.kernels.launch import along_rows, options, rows_per_program, width
from krea_model.kernels.triton_segments import COLUMNS, ROWS, sum_of_sample

__all__ = ["activate", "activate_backward", "residual", "residual_backward"]

BLOCK = 2048


@triton.jit
def activate_kernel(value, gate, out, size, SILU: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    v = tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    active = tl.sigmoid(g)
    if SILU:
        active = active * g
    tl.store(out + place, (v * active).to(out.dtype.element_ty), mask=inside)


@triton.jit
def activate_backward_kernel(dy, value, gate, dvalue, dgate, size, SILU: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    slope = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    active = tl.sigmoid(g)
    steep = active * (1.0 - active)
    if SILU:
        steep = active + g * steep
        active = active * g
    tl.store(dvalue + place, (slope * active).to(dvalue.dtype.element_ty), mask=inside)
    tl.store(dgate + place, (slope * v * steep).to(dgate.dtype.element_ty), mask=inside)


@triton.jit
def residual_kernel(x, branch, gate, owner, out, features, x_stride, branch_stride, gate_stride, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < features
    sample = tl.load(owner + token)
    base = tl.load(x + token * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(branch + token * branch_stride + columns, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + sample * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * features + columns, (base + g * added).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "rows"])
def residual_backward_kernel(
    dy, branch, gate, owner, ends, dbranch, partials,
    tokens, features, rows, branch_stride, gate_stride, REDUCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < features
    token = program * rows
    stop = tl.minimum(token + rows, tokens)
    while token < stop:
        sample = tl.load(owner + token)
        end = tl.minimum(tl.load(ends + sample + 1).to(tl.int64), stop)
        g = tl.load(gate + sample * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        while token < end:
            slope = tl.load(dy + token * features + columns, mask=inside, other=0.0).to(tl.float32)
            if REDUCE:
                added = tl.load(branch + token * branch_stride + columns, mask=inside, other=0.0).to(tl.float32)
                total += slope * added
            place = dbranch + token * features + columns
            tl.store(place, (slope * g).to(dbranch.dtype.element_ty), mask=inside)
            token += 1
        if REDUCE:
            tl.store(partials + (program + sample) * features + columns, total, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def collect_kernel(partials, ends, dgate, features, rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = sum_of_sample(partials, ends, sample, columns, features, rows, ROWS, COLUMNS)
    tl.store(dgate + sample * features + columns, total.to(dgate.dtype.element_ty), mask=columns < features)


def activate(value: Tensor, gate: Tensor, out: Tensor, silu: bool) -> None:
    """Fill out, dense, with value times sigmoid(gate), or times silu(gate); all of one shape."""
    size = out.numel()
    activate_kernel[(triton.cdiv(size, BLOCK),)](
        value.contiguous(), gate.contiguous(), out, size, SILU=silu, BLOCK=BLOCK, **options(BLOCK)
    )


def activate_backward(dy: Tensor, value: Tensor, gate: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of value and gate."""
    dy, value, gate, size = dy.contiguous(), value.contiguous(), gate.contiguous(), dy.numel()
    dvalue, dgate = torch.empty_like(value), torch.empty_like(gate)
    activate_backward_kernel[(triton.cdiv(size, BLOCK),)](
        dy, value, gate, dvalue, dgate, size, SILU=silu, BLOCK=BLOCK, **options(BLOCK)
    )
    return dvalue, dgate


def residual(x: Tensor, branch: Tensor, gate: Tensor, owner: Tensor, out: Tensor) -> None:
    """Fill out: `s f`, dense, with x + gate of the token's sample times branch."""
    x, branch, gate = along_rows(x), along_rows(branch), along_rows(gate)
    (tokens, features), block = x.shape, width(x.shape[1], BLOCK)
    strides = (x.stride(0), branch.stride(0), gate.stride(0))
    residual_kernel[(tokens, triton.cdiv(features, block))](
        x, branch, gate, owner, out, features, *strides, BLOCK=block, **options(block)
    )


def residual_backward(
    dy: Tensor, branch: Tensor, gate: Tensor, owner: Tensor, ends: Tensor, dgate: Tensor | None
) -> Tensor:
    """The gradient of branch; dgate: `b f`, dense, is filled too."""
    dy, branch, gate = dy.contiguous(), along_rows(branch), along_rows(gate)
    (tokens, features), block = branch.shape, width(branch.shape[1], BLOCK)
    dbranch = torch.empty(branch.shape, dtype=branch.dtype, device=branch.device)
    rows = rows_per_program(tokens, branch.device)
    programs = triton.cdiv(tokens, rows)
    slots = programs + gate.shape[0] if dgate is not None else 0
    partials = torch.empty(slots, features, dtype=torch.float32, device=branch.device)
    residual_backward_kernel[(programs, triton.cdiv(features, block))](
        dy, branch, gate, owner, ends, dbranch, partials, tokens, features, rows, branch.stride(0), gate.stride(0),
        REDUCE=dgate is not None, BLOCK=block, **options(block, 8),
    )  # fmt: skip
    if dgate is not None:
        collect_kernel[(gate.shape[0], triton.cdiv(features, COLUMNS))](
            partials, ends, dgate, features, rows, ROWS=ROWS, COLUMNS=COLUMNS, **options(ROWS * COLUMNS)
        )
    return dbranch
