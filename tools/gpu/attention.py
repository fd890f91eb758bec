"""Every attention backend against the definition, on sequences of several lengths."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from krea_model.attention import Backend, attend
from krea_model.spans import Spans
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.gpu.clock import error, measure
from tools.gpu.rows import Row
from tools.gpu.sizes import Sizes

__all__ = ["LIMITS", "attention_rows", "exact"]

# Largest error over the largest value of the reference: rounding alone stays well below.
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
PINNED = (
    SDPBackend.MATH,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
)


def exact(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention by its definition in fp64, one sequence at a time; arguments as `krea_model.attention.attend`."""
    parts = []
    for one in zip(*(x.double().split(list(lengths)) for x in (q, k, v)), strict=True):
        a, b, c = (x.transpose(0, 1) for x in one)
        b, c = (x.repeat_interleave(a.shape[0] // x.shape[0], 0) for x in (b, c))
        parts.append((torch.softmax(a @ b.mT / a.shape[-1] ** 0.5, -1) @ c).transpose(0, 1))
    return torch.cat(parts)


def backends(dtype: torch.dtype, device: str) -> Iterator[tuple[str, Callable[[], Any], Backend | None]]:
    """Name, a context that pins it, and the backend of `attend`, None where it is not there."""
    for one in PINNED:
        yield one.name.lower(), partial(sdpa_kernel, one), "sdpa"
    half = device == "cuda" and dtype is not torch.float32
    yield "varlen", nullcontext, "varlen" if half else None
    yield "flash", nullcontext, "flash" if half and importlib.util.find_spec("flash_attn") else None


def attention_rows(sizes: Sizes) -> Iterator[Row]:
    """Error and time of every backend and precision."""
    heads, kvheads = sizes.config.heads, sizes.config.kvheads
    tokens, head = sum(sizes.lengths), sizes.config.features // sizes.config.heads
    generator, spans = torch.Generator().manual_seed(1), Spans.of(sizes.lengths, sizes.device)
    drawn = [torch.randn(tokens, n, head, generator=generator) for n in (heads, kvheads, kvheads)]
    for dtype in LIMITS:
        q, k, v = (x.to(sizes.device, dtype) for x in drawn)
        wanted = exact(q, k, v, sizes.lengths)
        for backend, pinned, chosen in backends(dtype, sizes.device):
            name = f"attention {backend} {str(dtype).removeprefix('torch.')}"
            call: Any = partial(attend, q, k, v, spans, chosen)
            try:
                if chosen is None:
                    raise RuntimeError("No available kernel")
                with pinned():
                    found = error(call(), wanted)
                    ms, _ = measure(call, sizes)
            except RuntimeError as refusal:
                if not str(refusal).startswith(("No available kernel", "No viable backend")):
                    raise
                yield Row(name=name, value=None, note="not for these inputs on this device")
                continue
            yield Row(name=f"{name}: error", value=found, limit=LIMITS[dtype])
            yield Row(name=f"{name}: time", value=ms, unit="ms")
