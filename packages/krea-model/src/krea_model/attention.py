"""Attention over sequences of different lengths that lie end to end, without computing on padding."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend"]


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Full attention inside each sequence; q: `s n d`, k and v: `s m d`, m divides n; returns `s n d`.

    Equal lengths are computed together, others one by one; no mask is ever built, so grouped heads stay on a fused
    kernel.
    """
    if len(set(lengths)) == 1:
        return _equal(q, k, v, len(lengths))
    parts = zip(q.split(list(lengths)), k.split(list(lengths)), v.split(list(lengths)), strict=True)
    return torch.cat([_equal(*part, 1) for part in parts])


def _equal(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(0, 1)
