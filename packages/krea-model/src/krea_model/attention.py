"""Attention over sequences of different lengths that lie end to end, without computing on padding."""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend"]


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Full attention inside each sequence; q: `s n d`, k and v: `s m d`, m divides n; returns `s n d`.

    Sequences of equal length are computed together; no mask is ever built, so grouped heads stay on a fused kernel.
    A batch that is sorted by length saves four copies.
    """
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
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # fp32 is faster there, backwards several times
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), enable_gqa=grouped).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)
