"""The fused operations: errors against their definition, and their speed against what else computes them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from krea_model import kernels
from krea_model.kernels import reference
from krea_model.spans import Spans
from torch import Tensor

from tools.gpu.attention import LIMITS
from tools.gpu.clock import copy_rate, each, error
from tools.gpu.rows import Row
from tools.gpu.sizes import Sizes

__all__ = ["BAR", "Operation", "error_rows", "operations", "speed_rows"]

BAR = 0.8  # of the rate of a copy


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """Arguments of an operation, and how many of its largest tensors a pass forward and backward must move."""

    tensors: tuple[Tensor, ...]
    rest: tuple[Any, ...]
    moved: tuple[int, int]


def operations(sizes: Sizes, lengths: Sequence[int], dtype: torch.dtype) -> dict[str, Operation]:
    """Arguments for every operation of `krea_model.kernels`; weights of norms and angles stay in fp32."""
    generator = torch.Generator(sizes.device).manual_seed(3)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, device=sizes.device).to(dtype)

    config, tokens, spans = sizes.config, sum(lengths), Spans.of(lengths, sizes.device)
    f, head, single = config.features, config.features // config.heads, torch.float32
    scale, shift, gate = normal(len(lengths), 3 * f).chunk(3, -1)
    turn, x, y = normal(tokens, head // 2, dtype=single), normal(tokens, f), normal(tokens, f)
    rope = torch.stack([turn.cos(), turn.sin()], -1)
    heads = normal(tokens, config.heads, head)
    hidden = (normal(tokens, config.mlp), normal(tokens, config.mlp))
    return {
        "rms_norm_modulate": Operation(tensors=(x, normal(f, dtype=single), scale, shift), rest=(spans,), moved=(2, 3)),
        "norm_rotate": Operation(tensors=(heads, normal(head, dtype=single)), rest=(rope,), moved=(2, 3)),
        "gate_output": Operation(tensors=(x, y), rest=(), moved=(3, 5)),
        "swiglu": Operation(tensors=hidden, rest=(), moved=(3, 5)),
        "gated_residual": Operation(tensors=(x, y, gate), rest=(spans,), moved=(3, 3)),
    }


def error_rows(sizes: Sizes) -> Iterator[Row]:
    """The chosen implementation of every operation against its definition in fp32, forward and backward."""
    for dtype, limit in LIMITS.items():
        for name, given in operations(sizes, sizes.lengths, dtype).items():
            wanted, slopes = outcome(getattr(reference, name), [t.float() for t in given.tensors], given.rest)
            found, found_slopes = outcome(getattr(kernels, name), given.tensors, given.rest)
            title = f"kernel {name} {str(dtype).removeprefix('torch.')}"
            yield Row(name=f"{title}: error", value=error(found, wanted), limit=limit)
            worst = max(error(a, b) for a, b in zip(found_slopes, slopes, strict=True))
            yield Row(name=f"{title}: error of gradients", value=worst, limit=limit)


def outcome(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], rest: Sequence[Any]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result, and the gradients of a sum with factors that bf16 holds exactly."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves, *rest)
    factors = torch.arange(out.shape[-1], device=out.device).cos().bfloat16()
    return out.detach(), torch.autograd.grad((out.float() * factors).sum(), leaves)


def speed_rows(sizes: Sizes) -> Iterator[Row]:
    """Times in bf16 of every implementation, and the share of the rate of a copy that the chosen one reaches."""
    rate = copy_rate(sizes)
    yield Row(name="copy: rate", value=rate / 1e9, unit="GB/s")
    bar = BAR if sizes.device == "cuda" else None
    samples, tokens = sizes.stream
    for name, given in operations(sizes, (tokens,) * samples, torch.bfloat16).items():
        extra = given.rest[0].nbytes if name == "norm_rotate" else 0
        nbytes = [count * given.tensors[0].nbytes + extra for count in given.moved]
        for who, function, note in rivals(name, sizes):
            if function is None or not sizes.room():
                yield Row(name=f"kernel {name}, {who}", value=None, note=note or "skipped: out of time")
                continue
            for way, ms, size in zip(("forward", "backward"), times(function, given, sizes), nbytes, strict=True):
                title = f"kernel {name}, {who} {way}"
                yield Row(name=f"{title}: time", value=ms, unit="ms", note=note)
                if who == "chosen":
                    yield Row(name=f"{title}: share of a copy's rate", value=size / (ms * 1e-3) / rate, least=bar)


def times(function: Callable[..., Tensor], given: Operation, sizes: Sizes) -> tuple[float, float]:
    """Milliseconds forward, and backward for all gradients."""
    leaves = [t.detach().requires_grad_() for t in given.tensors]
    with torch.no_grad():
        forward = each(partial(function, *leaves, *given.rest), sizes)
    out = function(*leaves, *given.rest)
    slope = torch.randn_like(out)
    return forward, each(lambda: torch.autograd.grad(out, leaves, slope, retain_graph=True), sizes)


def rivals(name: str, sizes: Sizes) -> Iterator[tuple[str, Callable[..., Tensor] | None, str]]:
    """Who computes an operation: its name, a function or None, and a remark."""
    plain = getattr(reference, name)
    yield "chosen", getattr(kernels, name), ""
    yield "plain", plain, ""
    yield "plain compiled", torch.compile(plain, backend=sizes.compiler), ""
    if name in ("rms_norm_modulate", "swiglu"):
        yield "liger", *liger(name, sizes)


def liger(name: str, sizes: Sizes) -> tuple[Callable[..., Tensor] | None, str]:
    """The same operation of liger-kernel, on samples of equal length, or why there is none."""
    if sizes.device != "cuda":
        return None, "needs a GPU"
    try:
        from liger_kernel import ops  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None, "not installed"
    if name == "swiglu":
        return ops.LigerSiLUMulFunction.apply, ""
    norm = getattr(ops, "LigerModulatedRMSNormFunction", None)
    if norm is None:
        return None, "this version has no modulated norm"

    def modulated(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, spans: Spans) -> Tensor:
        rows = x.unflatten(0, (len(spans.lengths), -1))
        return norm.apply(rows, weight, scale, shift, reference.EPS, 1.0, "gemma", False).flatten(0, 1)

    return modulated, ""
