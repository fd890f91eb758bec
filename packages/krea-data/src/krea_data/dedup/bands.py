"""Exact radius search by bands: two codes that are near agree, but for a bit or none, in one of a few bands.

Six bands share out the 144 bits of shape. Let band i tolerate t_i flipped bits. Were a pair to exceed t_i in every
band, it would differ in at least the sum of all t_i + 1 bits; if that is more than the radius, every pair within the
radius is found by looking up, band by band, the values with up to t_i bits flipped. What is stored is the same for
every radius; a wider one looks up more. For a radius of 8 the three long bands tolerate one bit and the others none.

Each band takes every sixth bit or so: neighbours among the coefficients go together in real pictures, and a band of
neighbours would have few values that most pictures share.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from krea_data.dedup.limits import SHAPE_BITS

__all__ = ["SIZES", "key_slots", "key_texts", "probes", "shares", "tolerances", "values"]

SIZES = (21, 21, 21, 27, 27, 27)  # bits of each band
_TABLE = (
    1 << 22
)  # codes, for choosing what to tolerate where: a band looked up costs itself and the codes that it finds
_LETTERS = np.frombuffer(b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
_DIGITS = 5  # of 6 bits each


def shares(sizes: Sequence[int] = SIZES) -> list[NDArray[np.intp]]:
    """Which bits each band takes: the bands take turns until they are full."""
    left, taken = list(sizes), [[] for _ in sizes]
    bit = 0
    while bit < SHAPE_BITS:
        for band, mine in enumerate(taken):
            if left[band]:
                mine.append(bit)
                left[band] -= 1
                bit += 1
    return [np.array(mine, dtype=np.intp) for mine in taken]


def tolerances(radius: int, sizes: Sequence[int] = SIZES) -> tuple[int, ...]:
    """How many flipped bits each band tolerates so that no pair within the radius is missed; -1: it is not used."""
    chosen = [-1] * len(sizes)

    def price(band: int) -> float:
        return math.comb(sizes[band], chosen[band] + 1) * (1 + _TABLE / 2 ** sizes[band])

    for _ in range(radius + 1):
        chosen[min(range(len(sizes)), key=price)] += 1
    return tuple(chosen)


def values(shapes: NDArray[np.bool_], sizes: Sequence[int] = SIZES) -> NDArray[np.uint64]:
    """The keys `n bands` of shapes `n 144`: the number of the band in the high bits, its value in the low 32."""
    found = np.empty((len(shapes), len(sizes)), dtype=np.uint64)
    for band, mine in enumerate(shares(sizes)):
        weights = np.left_shift(np.uint64(1), np.arange(len(mine), dtype=np.uint64))
        found[:, band] = shapes[:, mine].astype(np.uint64) @ weights + np.uint64(band << 32)
    return found


@lru_cache(maxsize=100)
def _flips(radius: int, sizes: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """For every look-up its band, and the bits that are flipped."""
    bands, masks = [], []
    for band, most in enumerate(tolerances(radius, sizes)):
        for flipped in range(most + 1):
            for places in combinations(range(sizes[band]), flipped):
                bands.append(band)
                masks.append(sum(1 << place for place in places))
    return np.array(bands, dtype=np.intp), np.array(masks, dtype=np.uint64)


def probes(keys: NDArray[np.uint64], radius: int, sizes: Sequence[int] = SIZES) -> NDArray[np.uint64]:
    """All keys `n probes` under which codes within the radius of these may be found."""
    bands, masks = _flips(radius, tuple(sizes))
    return keys[:, bands] ^ masks


def key_slots(keys: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    """The slot of each key: the top bits of a mix (that of splitmix64), the same for ever."""
    mixed = keys + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(64 - bits)).astype(np.int64)


def key_texts(keys: NDArray[np.uint64]) -> NDArray[np.bytes_]:
    """Each key as 6 letters: the band, then its value in digits of 6 bits."""
    parts = [keys >> np.uint64(32)] + [keys >> np.uint64(6 * place) for place in reversed(range(_DIGITS))]
    letters = np.stack([_LETTERS[(part & np.uint64(63)).astype(np.intp)] for part in parts], axis=-1)
    return np.ascontiguousarray(letters).view(f"S{_DIGITS + 1}")[..., 0]
