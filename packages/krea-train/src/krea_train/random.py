"""Random numbers as a function of (seed, stream, step, sample id): ranks, workers and resumes change nothing.

A draw has no state: its address is hashed (BLAKE2), the hash is the number, or the key of a Philox generator when more
than one is needed. torch's own CPU generator keeps 32 bits of its seed and would repeat itself.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["generator", "normals", "stratified", "uniforms"]


def _bits(*address: int | str) -> int:
    """128 bits for an address."""
    return int.from_bytes(hashlib.blake2b(repr(address).encode(), digest_size=16).digest(), "little")


def _philox(bits: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=bits))


def generator(seed: int, stream: str, step: int, sample: int | str = "") -> torch.Generator:
    """A torch generator on the CPU for one draw; of its seed torch keeps 32 bits, so prefer `normals` for noise."""
    return torch.Generator().manual_seed(_bits(seed, stream, step, sample) >> 65)


def normals(seed: int, stream: str, step: int, ids: Sequence[int | str], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers `b *shape`, fp32, on the CPU; row i depends on ids[i] and not on its neighbours."""
    out = np.empty((len(ids), *shape), dtype=np.float32)
    philox = np.random.Philox(key=0)
    fresh, draw = philox.state, np.random.Generator(philox).standard_normal
    for row, sample in zip(out, ids, strict=True):
        low_first = divmod(_bits(seed, stream, step, sample), 2**64)[::-1]
        philox.state = {
            **fresh,
            "state": {**fresh["state"], "key": np.array(low_first, np.uint64)},
        }  # a tenth of the cost of a new one
        draw(out=row, dtype=np.float32)
    return torch.from_numpy(out)


def uniforms(seed: int, stream: str, step: int, ids: Sequence[int | str]) -> Tensor:
    """One number of [0, 1) per sample, `b`, fp64."""
    return torch.tensor([(_bits(seed, stream, step, i) >> 75) * 2.0**-53 for i in ids], dtype=torch.float64)


def stratified(
    seed: int, stream: str, step: int, ids: Sequence[int | str], *, total: int | None = None, offset: int = 0
) -> Tensor:
    """One number of [0, 1) per sample, `b`, fp64: each of `total` equal slices of [0, 1) is hit once.

    ids are the samples offset .. offset + b of a global batch of `total` (default: b), so that every rank draws its
    share of one stratified batch. Each number alone is uniform.
    """
    total = len(ids) if total is None else total
    if not 0 <= offset <= total - len(ids):
        raise ValueError(
            f"samples {offset} to {offset + len(ids)} do not lie in a global batch of {total}; raise total"
        )
    slices = _philox(_bits(seed, stream, step, "slices", total)).permutation(total)[offset : offset + len(ids)]
    return (torch.from_numpy(slices) + uniforms(seed, stream, step, ids)) / total
