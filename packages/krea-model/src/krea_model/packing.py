"""Latents to tokens and back, and how to take means per image of a flat batch."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from krea_model.inputs import token_counts
from krea_model.interfaces import Conditioning, Grids
from krea_model.plain import is_whole

__all__ = ["image_mean", "level", "pack", "per_token", "unpack"]


def pack(latents: Sequence[Tensor] | Tensor, patch: int = 2) -> tuple[Tensor, list[tuple[int, int]]]:
    """`c h w` latents (a list of any sizes, or a batch) -> tokens `s f` end to end, and their grids.

    A token holds one patch, channel slowest: f = c * patch * patch.
    """
    if not len(latents) or not is_whole(patch, 1):
        raise ValueError(f"{len(latents)} latents in patches of {patch!r}; give at least one, and the model's patch")
    tokens, grids = [], []
    for z in latents:
        if z.ndim != 3:
            raise ValueError(f"a latent of shape {tuple(z.shape)}; give (channels, height, width), or a batch of them")
        if z.shape[-2] % patch or z.shape[-1] % patch:
            raise ValueError(
                f"latent of {z.shape[-2]}x{z.shape[-1]} does not divide into {patch}x{patch} patches; pad or crop it"
            )
        tokens.append(rearrange(z, "c (h p) (w q) -> (h w) (c p q)", p=patch, q=patch))
        grids.append((z.shape[-2] // patch, z.shape[-1] // patch))
    return torch.cat(tokens), grids


def unpack(tokens: Tensor, grids: Grids, patch: int = 2) -> list[Tensor]:
    """Inverse of `pack`: a list of `c h w` latents; ValueError for tokens that are not those of the grids."""
    sizes = token_counts(grids)
    if tokens.ndim != 2 or len(tokens) != sum(sizes) or not is_whole(patch, 1) or tokens.shape[1] % patch**2:
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} for grids of {sum(sizes)} tokens in patches of {patch!r}; give "
            "(tokens, channels * patch * patch) and the grids that `pack` gave"
        )
    parts = tokens.split(sizes)
    return [
        rearrange(part, "(h w) (c p q) -> c (h p) (w q)", h=h, w=w, p=patch, q=patch)
        for part, (h, w) in zip(parts, grids, strict=True)
    ]


def level(
    t: Tensor, cond: Conditioning, grids: Grids, multiple: int
) -> tuple[Tensor, Conditioning, list[tuple[int, int]]]:
    """Round the tokens of a batch up to a multiple, by one more sample that has text of zeros and no image.

    Nothing else changes, the velocity included. Batches of a few sizes instead of hundreds keep the C library's heap
    from splintering, which slows a long run on the CPU by a quarter (docs/benchmarks.md).
    """
    extra = -(sum(cond.lengths) + sum(h * w for h, w in grids)) % multiple
    if not extra:
        return t, cond, list(grids)
    states = torch.cat([cond.states, cond.states.new_zeros(extra, *cond.states.shape[1:])])
    return torch.cat([t, t.new_zeros(1)]), Conditioning(states, (*cond.lengths, extra)), [*grids, (0, 0)]


def per_token(values: Tensor, grids: Grids) -> Tensor:
    """`b` -> `s 1`: one value per image, repeated over its tokens."""
    return values[_owners(grids, values.device)][:, None]


def image_mean(tokens: Tensor, grids: Grids) -> Tensor:
    """`s f` -> `b`: mean over the tokens and features of each image."""
    counts = torch.tensor([h * w for h, w in grids], device=tokens.device)
    sums = torch.zeros(len(grids), dtype=tokens.dtype, device=tokens.device)
    return sums.index_add(0, _owners(grids, tokens.device), tokens.mean(-1)) / counts


def _owners(grids: Grids, device: torch.device) -> Tensor:
    """`s`: the image of each token; made on the host, so that nothing waits for the device."""
    return torch.tensor([i for i, (h, w) in enumerate(grids) for _ in range(h * w)], device=device)
