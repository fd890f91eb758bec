"""Attention over sequences of different lengths that lie end to end, without computing on padding.

Three backends compute the same. `sdpa` groups sequences of one length and calls torch's fused kernels on each group;
`varlen` is torch's kernel for flat batches, `flash` that of flash-attn (both for half precision on CUDA). One is chosen
per device and precision, and the log says once which and why.
"""

import functools
import importlib.util
import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from krea_model.spans import Spans

__all__ = ["Backend", "attend", "chosen"]

Backend = Literal["sdpa", "varlen", "flash"]

log = logging.getLogger(__name__)


def attend(q: Tensor, k: Tensor, v: Tensor, spans: Spans, backend: Backend | None = None) -> Tensor:
    """Full attention inside each sequence; q: `s n d`, k and v: `s m d`, m divides n; returns `s n d`.

    No mask is ever built, so grouped heads stay on a fused kernel and memory grows with the longest sequence, not with
    its square. backend: None takes the one that `chosen` names.
    """
    backend = backend or chosen(q.device.type, q.dtype)
    if backend == "sdpa" or (not torch.compiler.is_compiling() and spans.equal):
        return _by_length(q, k, v, spans)  # pyright: ignore[reportCallIssue] (its decorator is untyped)
    return _flash(q, k, v, spans) if backend == "flash" else _varlen(q, k, v, spans)


@torch.compiler.assume_constant_result
def chosen(device: str, dtype: torch.dtype) -> Backend:
    """The backend for flat batches on a type of device ("cpu", "cuda"); logs the choice the first time."""
    return _choice(device, dtype)


@functools.cache
def _choice(device: str, dtype: torch.dtype) -> Backend:
    name, why = _best(device, dtype)
    log.info("attention on %s in %s: %s, because %s", device, str(dtype).removeprefix("torch."), name, why)
    return name


def _best(device: str, dtype: torch.dtype) -> tuple[Backend, str]:
    if device != "cuda":
        return "sdpa", f"the others have no kernel for {device}"
    if dtype not in (torch.bfloat16, torch.float16):
        return "sdpa", "the others compute in half precision only"
    if torch.version.hip is None and importlib.util.find_spec("flash_attn") is not None:
        return "flash", "flash-attn is installed"
    if torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0):
        return "varlen", "flash-attn is not installed"
    return "sdpa", "flash-attn is not installed and this GPU has no kernel for flat batches"


def _flash(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    # not at the top: it loads CUDA
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return flash_attn_varlen_func(q, k, v, spans.ends, spans.ends, spans.longest, spans.longest)


def _varlen(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not at the top: it is younger than the oldest torch we accept

    out = varlen_attn(
        *(q, k, v, spans.ends, spans.ends, spans.longest, spans.longest), enable_gqa=q.shape[1] != k.shape[1]
    )
    assert isinstance(out, Tensor)
    return out


@torch.compiler.disable
def _by_length(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    """Sequences of equal length are computed together; a batch that is sorted by length saves four copies."""
    lengths = [n for n in spans.lengths if n]  # a sample without tokens takes no part
    if not lengths:
        return q
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    if order == list(range(len(order))):
        return _ascending(q, k, v, lengths)
    ascending = [lengths[i] for i in order]
    q, k, v = (_reorder(x, lengths, order) for x in (q, k, v))
    out = _ascending(q, k, v, ascending)
    return _reorder(out, ascending, sorted(range(len(order)), key=order.__getitem__))


def _reorder(x: Tensor, lengths: Sequence[int], order: Sequence[int]) -> Tensor:
    """The sequences that lie end to end in x, in another order."""
    parts = x.split(list(lengths))
    return torch.cat([parts[i] for i in order])


def _ascending(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    counts = {length: len(list(run)) for length, run in groupby(lengths)}
    if len(counts) == 1:
        return _equal(q, k, v, len(lengths))
    sizes = [length * count for length, count in counts.items()]
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), counts.values(), strict=True)
    return torch.cat([_equal(*part) for part in parts])


def _equal(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.device.type == "cuda" and q.dtype == torch.float32:
        # only the kernel that materialises all scores groups heads in fp32; the memory-saving one does not
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        grouped = False
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # fp32 is faster there, backwards several times
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), enable_gqa=grouped).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)
