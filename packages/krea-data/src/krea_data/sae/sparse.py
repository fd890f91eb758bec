"""Activations as three arrays: of `n latents` numbers nearly all are 0."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sparse"]


@dataclass(frozen=True, slots=True)
class Sparse:
    """Row `r` has the latents `latents[starts[r] : starts[r + 1]]` with these `values`, in order of the latents."""

    starts: NDArray[np.int64]
    latents: NDArray[np.int64]
    values: NDArray[np.float32]
    width: int

    @classmethod
    def of(cls, parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], rows: int, width: int) -> "Sparse":
        """From (rows, latents, values) that come in order."""
        found = list(parts) or [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
        places, latents, values = (np.concatenate(column) for column in zip(*found, strict=True))
        starts = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=rows))])
        return cls(starts.astype(np.int64), latents.astype(np.int64), values.astype(np.float32), width)

    def __len__(self) -> int:
        """Rows."""
        return len(self.starts) - 1

    def row(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Latents and values of a row, the strongest first."""
        low, high = self.starts[number], self.starts[number + 1]
        order = np.argsort(-self.values[low:high], kind="stable")
        return self.latents[low:high][order], self.values[low:high][order]

    def columns(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
        """Every latent that is ever used, with its rows and values, the strongest first."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.starts))
        order = np.lexsort((rows, -self.values, self.latents))
        latents, starts = np.unique(self.latents[order], return_index=True)
        for latent, low, high in zip(latents.tolist(), starts, [*starts[1:], len(order)], strict=False):
            part = order[low:high]
            yield latent, rows[part], self.values[part]
