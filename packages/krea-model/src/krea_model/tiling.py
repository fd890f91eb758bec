"""Decoding large pictures in overlapping tiles, so that memory is bounded by the tile and not by the picture."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["TILING", "Tiling", "decode", "tiled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """When to decode in tiles, and in which: pictures of more than `above_px` pixels, tiles of at most `side_px`.

    overlap_px: shared by neighbours, at least. A quarter of it at either edge is thrown away and the half between is
    blended, so a decoder that sees no further than a quarter gives what it gives for the whole picture.
    """

    above_px: int = 1536 * 1536
    side_px: int = 1536
    overlap_px: int = 256

    def __post_init__(self) -> None:
        if self.above_px < 0 or not 0 < self.overlap_px <= self.side_px // 2:
            raise ValueError(f"{self}; overlap_px must be at least 1 and at most half of side_px, above_px at least 0")


TILING = Tiling()
"""What the autoencoders do unless told otherwise."""


def decode(whole: Callable[[Tensor], Tensor], latents: Tensor, compression: int, tiling: Tiling | None) -> Tensor:
    """`whole(latents)`, or the same in parts if it is more than `tiling` allows at a time; None allows everything.

    latents: `b c h w`; returns `b 3 H W`, in fp32 if tiled. Smaller pictures are decoded whole, as many together as
    have `above_px` pixels.
    """
    pixels = latents.shape[-2] * latents.shape[-1] * compression**2
    if tiling is None or not pixels:
        return whole(latents)
    if pixels <= tiling.above_px:
        return torch.cat([whole(part) for part in latents.split(tiling.above_px // pixels)])
    overlap = max(1, tiling.overlap_px // compression)
    return tiled(whole, latents, max(2 * overlap, tiling.side_px // compression), overlap, compression)


def tiled(decode: Callable[[Tensor], Tensor], latents: Tensor, tile: int, overlap: int, compression: int) -> Tensor:
    """Decode `b c h w` tile by tile and blend linearly: `b 3 H W` in fp32, on the device of the latents.

    tile, overlap: rows and columns of a tile at most, and those that neighbours share at least, in latent positions.
    compression: pixels per latent position along one side. One tile of one picture is decoded at a time.
    """
    if not 0 < overlap <= tile // 2:
        raise ValueError(f"tiles of {tile} latent positions with an overlap of {overlap}; it must be 1 to half of that")
    height, width = latents.shape[-2] * compression, latents.shape[-1] * compression
    out: Tensor | None = None
    for i, z in enumerate(latents):
        for row, rows in _spans(latents.shape[-2], tile, overlap, compression):
            for column, columns in _spans(latents.shape[-1], tile, overlap, compression):
                part = decode(z[None, :, row, column])[0].float()
                if out is None:
                    out = part.new_zeros(len(latents), part.shape[0], height, width)
                weights = rows.to(part.device)[:, None] * columns.to(part.device)
                out[i, :, _scaled(row, compression), _scaled(column, compression)].addcmul_(part, weights)
    if out is None:
        raise ValueError(f"latents of shape {tuple(latents.shape)} hold no picture")
    return out.to(latents.device)


def _spans(length: int, tile: int, overlap: int, compression: int) -> Iterator[tuple[slice, Tensor]]:
    """Equal tiles along one axis, as few as possible and then as small as possible, and the weight of each pixel.

    The weights of all tiles add up to 1 everywhere.
    """
    count = max(1, math.ceil((length - overlap) / (tile - overlap)))
    size = min(length, math.ceil((length + (count - 1) * overlap) / count))
    starts = [round(i * (length - size) / max(1, count - 1)) for i in range(count)]
    centres = [(start + size + following) / 2 for start, following in pairwise(starts)]
    pixels = torch.arange(length * compression, dtype=torch.float32) + 0.5
    ramps = [((pixels - c * compression) / (overlap / 2 * compression) + 0.5).clamp(0, 1) for c in centres]
    ramps = [torch.ones_like(pixels), *ramps, torch.zeros_like(pixels)]
    for start, (before, after) in zip(starts, pairwise(ramps), strict=True):
        here = slice(start, start + size)
        yield here, (before - after)[_scaled(here, compression)]


def _scaled(positions: slice, factor: int) -> slice:
    return slice(positions.start * factor, positions.stop * factor)
