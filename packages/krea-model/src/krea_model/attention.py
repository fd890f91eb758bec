"""Attention over sequences of different lengths that lie end to end, without computing on padding."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend"]


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Full attention inside each sequence; q: `s n d`, k and v: `s m d`, m divides n; returns `s n d`.

    Sequences of equal length are computed together; no mask is ever built, so grouped heads stay on a fused kernel.
    """
    if len(set(lengths)) == 1:
        return _equal(q, k, v, len(lengths))
    out = torch.empty_like(q)
    for rows, count in groups(tuple(lengths), q.device):
        out = out.index_copy(0, rows, _equal(q[rows], k[rows], v[rows], count))
    return out


@lru_cache(maxsize=64)  # every layer of a forward asks for the same lengths
def groups(lengths: tuple[int, ...], device: torch.device) -> list[tuple[Tensor, int]]:
    """For each distinct length the token indices of its sequences and how many there are."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    found = []
    for length in sorted(set(lengths)):
        first = torch.tensor([starts[i] for i, n in enumerate(lengths) if n == length], device=device)
        found.append(((first[:, None] + torch.arange(length, device=device)).flatten(), len(first)))
    return found


def _equal(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(0, 1)
