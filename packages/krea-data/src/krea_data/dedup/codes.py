"""What the index knows of pictures: their nodes and codes, read from the results of the task `hash`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krea_data.dedup.limits import COLOUR_BITS, SHAPE_BITS
from krea_data.rows import Row

__all__ = ["Codes", "codes_from", "codes_of", "mean_distance", "node_of"]

_BITS = SHAPE_BITS + COLOUR_BITS


def node_of(blob: str) -> str:
    """The name of a picture's bytes in the index: 32 hex digits."""
    return hashlib.blake2b(blob.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class Codes:
    """Nodes with their codes."""

    nodes: Sequence[str]
    bits: NDArray[np.bool_]  # n 186: shape, then colour
    means: NDArray[np.int64]  # n: rrggbb as a number
    vague: NDArray[np.bool_]  # n

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def shapes(self) -> NDArray[np.bool_]:
        """The bits `n 144` of the perceptual hashes."""
        return self.bits[:, :SHAPE_BITS]

    @property
    def texts(self) -> NDArray[np.bytes_]:
        """The codes as PostgreSQL writes bits."""
        letters = np.ascontiguousarray(self.bits.astype(np.uint8) + ord("0"))
        return letters.view(f"S{_BITS}")[:, 0]

    def some(self, places: NDArray[np.intp]) -> "Codes":
        """These alone."""
        nodes = [self.nodes[int(place)] for place in places]
        return Codes(nodes, self.bits[places], self.means[places], self.vague[places])


def codes_of(rows: Sequence[Row]) -> Codes:
    """The codes of the rows' blobs, each once, in order of first appearance; ValueError for a row without a hash."""
    first: dict[str, Row] = {}
    for row in rows:
        if "hash" not in row.results:
            raise ValueError(f"row {row.id} has no perceptual hash; run the task hash on it before")
        first.setdefault(row.blob, row)
    hashes = [row.results["hash"].value for row in first.values()]
    shapes = _bits([one["phash"] for one in hashes], SHAPE_BITS)
    colours = _bits([one["colour"] for one in hashes], COLOUR_BITS)
    return Codes(
        [node_of(blob) for blob in first],
        np.concatenate([shapes, colours], axis=1),
        np.array([int(one["mean"], 16) for one in hashes], dtype=np.int64),
        np.array([one["vague"] for one in hashes], dtype=np.bool_),
    )


def codes_from(lines: Sequence[tuple[str, str, int, bool]]) -> Codes:
    """Codes as the database gives them: node, bits, mean and whether it is vague."""
    letters = "".join(bits for _, bits, _, _ in lines).encode()
    return Codes(
        [node for node, *_ in lines],
        (np.frombuffer(bytearray(letters), np.uint8) == ord("1")).reshape(len(lines), _BITS),
        np.array([mean for _, _, mean, _ in lines], dtype=np.int64),
        np.array([vague for *_, vague in lines], dtype=np.bool_),
    )


def mean_distance(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """The greatest difference among red, green and blue."""
    channels = [np.abs((left >> shift & 255) - (right >> shift & 255)) for shift in (16, 8, 0)]
    return np.maximum.reduce(channels)


def _bits(hexadecimal: Sequence[str], bits: int) -> NDArray[np.bool_]:
    """Hashes in hex as `n bits`, the highest bit first."""
    size = -(-bits // 8)
    whole = b"".join(int(one, 16).to_bytes(size) for one in hexadecimal)
    return np.unpackbits(np.frombuffer(bytearray(whole), np.uint8).reshape(-1, size), axis=1)[:, -bits:].astype(
        np.bool_
    )
