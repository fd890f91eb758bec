"""Random numbers as a function of (seed, stream, step, sample id), never of who draws them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["generator", "normals", "uniforms"]


def generator(seed: int, stream: str, step: int, sample: int | str) -> np.random.Generator:
    """A Philox generator with a key of its own for every draw."""
    digest = hashlib.blake2b(repr((seed, stream, step, sample)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


def normals(seed: int, stream: str, step: int, sample: int | str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers of one sample, fp32, on the CPU."""
    return torch.from_numpy(generator(seed, stream, step, sample).standard_normal(tuple(shape), dtype=np.float32))


def uniforms(seed: int, stream: str, step: int, ids: Sequence[int | str]) -> Tensor:
    """One number of [0, 1) per sample, `b`, fp64."""
    return torch.tensor([generator(seed, stream, step, sample).random() for sample in ids], dtype=torch.float64)
