"""RMS norm of each head and the rotation of its pairs, in one pass over memory forward and one backward."""

# Triton declares compile-time arguments as constexpr and takes plain numbers.
# pyright: reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from krea_model.kernels.launch import along_rows, options, rows_per_program, width
from krea_model.kernels.reference import EPS

__all__ = ["backward", "forward"]

TILE = 8192  # elements of a token that one program holds at most


@triton.jit
def forward_kernel(
    x, weight, rope, out, heads, size, token_stride, head_stride, eps, HEADS: tl.constexpr, SIZE: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, SIZE)
    inside = (head < heads)[:, None] & (columns < size)[None, :]
    place = x + token * token_stride + head.to(tl.int64)[:, None] * head_stride + columns[None, :]
    values = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    w = 1.0 + tl.load(weight + columns, mask=columns < size, other=0.0).to(tl.float32)
    angles = tl.load(rope + token * size + columns, mask=columns < size, other=0.0)
    cos, sin = tl.split(tl.reshape(angles, [1, SIZE // 2, 2]))
    inverse = tl.rsqrt(tl.sum(values * values, 1) / size + eps)
    a, b = tl.split(tl.reshape(values * inverse[:, None] * w[None, :], [HEADS, SIZE // 2, 2]))
    turned = tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), [HEADS, SIZE])
    to = out + (token * heads + head[:, None]) * size + columns[None, :]
    tl.store(to, turned.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "rows"])
def backward_kernel(
    x, weight, rope, dy, dx, partials,
    tokens, heads, size, rows, token_stride, head_stride, eps,
    REDUCE: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    columns = tl.arange(0, SIZE)
    there = columns < size
    inside = (head < heads)[:, None] & there[None, :]
    w = 1.0 + tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    total = tl.zeros([HEADS, SIZE], tl.float32)
    token = program * rows
    stop = tl.minimum(token + rows, tokens)
    place = head[:, None] * head_stride + columns[None, :]
    flat = head[:, None] * size + columns[None, :]
    while token < stop:
        values = tl.load(x + token * token_stride + place, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(dy + token * heads * size + flat, mask=inside, other=0.0).to(tl.float32)
        angles = tl.load(rope + token * size + columns, mask=there, other=0.0)
        cos, sin = tl.split(tl.reshape(angles, [1, SIZE // 2, 2]))
        a, b = tl.split(tl.reshape(slope, [HEADS, SIZE // 2, 2]))
        turned = tl.reshape(tl.join(a * cos + b * sin, b * cos - a * sin), [HEADS, SIZE])
        inverse = tl.rsqrt(tl.sum(values * values, 1) / size + eps)[:, None]
        unit = values * inverse
        along = tl.sum(turned * w[None, :] * unit, 1)[:, None] / size
        result = inverse * (turned * w[None, :] - unit * along)
        tl.store(dx + token * heads * size + flat, result.to(dx.dtype.element_ty), mask=inside)
        if REDUCE:
            total += turned * unit
        token += 1
    if REDUCE:
        slot = program * tl.num_programs(1) + tl.program_id(1)
        tl.store(partials + slot * size + columns, tl.sum(total, 0), mask=there)


def forward(x: Tensor, weight: Tensor, rope: Tensor, out: Tensor) -> None:
    """Fill out: `s n d`, dense."""
    x, (tokens, heads, size) = along_rows(x), x.shape
    across, along = _tile(heads, size)
    forward_kernel[(tokens, triton.cdiv(heads, across))](
        x, along_rows(weight), rope.contiguous(), out, heads, size, x.stride(0), x.stride(1),
        EPS, HEADS=across, SIZE=along, **options(across * along),
    )  # fmt: skip


def backward(dy: Tensor, x: Tensor, weight: Tensor, rope: Tensor, small: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and, if `small`, of the weight, in fp32; the latter is empty otherwise."""
    x, (tokens, heads, size) = along_rows(x), x.shape
    across, along = _tile(heads, size)
    rows = rows_per_program(tokens, x.device)
    grid = (triton.cdiv(tokens, rows), triton.cdiv(heads, across))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partials = torch.empty(grid[0] * grid[1] if small else 0, size, dtype=torch.float32, device=x.device)
    backward_kernel[grid](
        x, along_rows(weight), rope.contiguous(), dy.contiguous(), dx, partials, tokens, heads, size, rows, x.stride(0),
        x.stride(1), EPS, REDUCE=small, HEADS=across, SIZE=along, **options(across * along, 8),
    )  # fmt: skip
    return dx, partials.sum(0)


def _tile(heads: int, size: int) -> tuple[int, int]:
    along = width(size)
    return width(heads, max(TILE // along, 1)), along
