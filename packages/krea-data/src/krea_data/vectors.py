"""Vectors as they lie in a result: half-precision numbers in base64, 2.7 characters each."""

import base64
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from krea_data.rows import Row

__all__ = ["packed", "unpacked", "vectors_of"]


def packed(vector: NDArray[np.floating]) -> str:
    """A finite vector as text; ValueError if half precision cannot hold it."""
    with np.errstate(over="ignore"):
        half = np.asarray(vector, dtype="<f2")
    if half.ndim != 1 or not np.isfinite(half).all():
        raise ValueError(f"a vector of shape {half.shape} and up to {np.abs(vector).max():g} is not finite in 16 bits")
    return base64.b64encode(half.tobytes()).decode()


def unpacked(text: str) -> NDArray[np.float32]:
    """The vector of such a text, or ValueError."""
    data = base64.b64decode(text, validate=True)
    if not data or len(data) % 2:
        raise ValueError(f"{len(data)} bytes are no vector of 16-bit numbers")
    return np.frombuffer(data, dtype="<f2").astype(np.float32)


def vectors_of(rows: Iterable[Row], task: str = "embed") -> tuple[list[Row], NDArray[np.float32]]:
    """The rows that this task kept, and their vectors `n features`; ValueError if two embedders were at work."""
    kept = [row for row in rows if row.kept_by(task)]
    models: Sequence[str] = sorted({str(row.results[task].value["model"]) for row in kept})
    if len(models) > 1:
        raise ValueError(f"the vectors of {task} come from {', '.join(models)}; embed all rows with one of them")
    found = [unpacked(row.results[task].value["vector"]) for row in kept]
    return kept, np.stack(found) if found else np.zeros((0, 0), np.float32)
