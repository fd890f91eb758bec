"""Tags of a picture: the dominant named features of a sparse autoencoder (`krea_data.sae`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from krea_data.rows import Result, Row
from krea_data.sae.model import SparseAutoencoder, encode_all
from krea_data.sae.names import Feature, dominant
from krea_data.vectors import vectors_of

__all__ = ["Tags"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tags:
    """Writes up to `most` tags with their strengths, strongest first, and the version of model and names.

    Give it the autoencoder and the names that belong to it. It reads the vectors of the task `source`.
    """

    model: SparseAutoencoder
    features: Sequence[Feature]
    version: str
    most: int = 5
    share: float = 0.25  # of a feature's greatest strength, below which it does not count
    source: str = "embed"
    name: str = "tags"
    after: tuple[str, ...] = ("embed",)
    batch: int = 256
    columns: ClassVar[dict[str, type]] = {"version": str, "first": str}
    indexed: ClassVar[tuple[str, ...]] = ("first",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tasks whose results it needs."""
        return (self.source,)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        kept, vectors = vectors_of(rows, self.source)
        found = encode_all(self.model, vectors)
        tags = {
            row.id: dominant(found, self.features, place, most=self.most, share=self.share)
            for place, row in enumerate(kept)
        }
        return [self._result(tags.get(row.id, [])) for row in rows]

    def _result(self, tags: list[tuple[str, float]]) -> Result:
        first = {"first": tags[0][0]} if tags else {}
        return Result(value={"tags": [list(tag) for tag in tags], "version": self.version, **first})
