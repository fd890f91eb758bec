"""A vector for every picture, on which duplicates, classifiers and tags are built."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.picture import decode
from krea_data.vectors import packed

__all__ = ["Embed", "Embedder"]


class Embedder(Protocol):
    """Pictures to vectors; `name` says which network and version, as vectors of two cannot be compared."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Features `n features` of RGB pictures."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Embed:
    """Writes the picture's vector (see `krea_data.vectors`) and the embedder's name; drops nothing."""

    blobs: Blobs
    embedder: Embedder
    name: str = "embed"
    after: tuple[str, ...] = ("dedup",)
    batch: int = 32
    columns: ClassVar[dict[str, type]] = {"model": str}
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        found = self.embedder([decode(self.blobs.get(row.blob))[0] for row in rows])
        return [Result(value={"model": self.embedder.name, "vector": packed(vector)}) for vector in found]
