"""How far each member of a group stands from the others, without torch.

The distance is per sample: the mean over a group would be the same for all of it and vanish when rewards are normalised
within the group.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

__all__ = ["distances", "text_distances"]


def distances(vectors: Sequence[Sequence[float]]) -> list[float]:
    """Mean cosine distance of each vector to the others, from 0 to 2; a group of one has distance 0."""
    return _distances([dict(enumerate(map(float, vector))) for vector in vectors])


def text_distances(texts: Sequence[str]) -> list[float]:
    """The same for texts, by their runs of three characters, from 0 (all equal) to 1 (nothing in common)."""
    return _distances([_trigrams(text) for text in texts])


def _distances(vectors: Sequence[Mapping[object, float]]) -> list[float]:
    lengths = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
    if not all(map(math.isfinite, lengths)):
        raise ValueError("a vector contains numbers that are not finite; leave that member out of the group")
    unit = [{k: v / size for k, v in vec.items()} if size else {} for vec, size in zip(vectors, lengths, strict=True)]
    result = []
    for i, one in enumerate(unit):
        others = [1.0 - _dot(one, other) for j, other in enumerate(unit) if j != i]
        result.append(max(0.0, sum(others) / len(others)) if others else 0.0)
    return result


def _dot(one: Mapping[object, float], other: Mapping[object, float]) -> float:
    small, large = (one, other) if len(one) <= len(other) else (other, one)
    if not small and not large:
        return 1.0  # two empty texts are the same text
    return sum(value * large.get(key, 0.0) for key, value in small.items())


def _trigrams(text: str) -> Counter[object]:
    padded = f"  {' '.join(text.lower().split())} " if text.strip() else ""
    return Counter(padded[i : i + 3] for i in range(len(padded) - 2))
