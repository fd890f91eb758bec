"""What a head (`krea_data.classify`) says of a picture: artifacts, safety, or whatever it was trained for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from krea_data.classify.head import Head
from krea_data.rows import Result, Row
from krea_data.vectors import vectors_of

__all__ = ["Classify"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Classify:
    """Writes the head's score, its answer (yes, no, unsure) and its version; by itself it drops nothing.

    With `drop_from`, rows with the answer "yes" and at least that score are dropped for `reason`, by default the
    head's name. Rows without a vector of `source` get the answer "unsure" and no score. ValueError for vectors of
    another embedder than the head's.
    """

    head: Head
    drop_from: float | None = None
    reason: str = ""
    source: str = "embed"
    name: str = "classify"
    after: tuple[str, ...] = ("embed",)
    batch: int = 256
    columns: ClassVar[dict[str, type]] = {"score": float, "answer": str, "version": str}
    indexed: ClassVar[tuple[str, ...]] = ("score",)

    def __post_init__(self) -> None:
        if self.drop_from is not None and not 0 <= self.drop_from <= 1:
            raise ValueError(f"drop_from {self.drop_from} is no score; use 0 to 1, or None to drop nothing")

    @property
    def reads(self) -> tuple[str, ...]:
        """The tasks whose results it needs."""
        return (self.source,)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        kept, vectors = vectors_of(rows, self.source)
        if kept and (model := str(kept[0].results[self.source].value["model"])) != self.head.embedder:
            raise ValueError(f"the vectors come from {model}, the head {self.head.name} wants {self.head.embedder}")
        scores = self.head(vectors).tolist() if kept else []
        found = {row.id: score for row, score in zip(kept, scores, strict=True)}
        return [self._result(found.get(row.id)) for row in rows]

    def _result(self, score: float | None) -> Result:
        if score is None:
            return Result(value={"answer": "unsure", "version": self.head.version})
        answer = self.head.limits.answer(score)
        dropped = answer == "yes" and self.drop_from is not None and score >= self.drop_from
        value = {"score": round(score, 6), "answer": answer, "version": self.head.version}
        return Result(value=value, drop=(self.reason or self.head.name) if dropped else None)
