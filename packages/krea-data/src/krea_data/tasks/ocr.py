"""The text in a picture, and how much of the picture it takes (Krea 2 report, data): a number, and no judgement."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from krea_data.captions.clean import plain_text
from krea_data.captions.reading import RapidReader, Reader, Text, density
from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.picture import decode

__all__ = ["Ocr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ocr:
    """Writes the texts with their boxes (left, top, right, bottom in pixels) and confidences, and the text density.

    Texts stand line by line from the top, each line from the left; columns are read across. What the reader is less
    sure of than `least_confidence`, and what has no letter or digit, is left out and does not count. `density` is the
    share of the picture under text. It drops nothing unless there is a `density_limit`: then "text" above it. The usual
    reader reads Latin, Chinese, Japanese and Greek letters, and no others (`krea_data.captions.reading`).
    """

    blobs: Blobs
    reader: Reader = field(default_factory=RapidReader)
    least_confidence: float = 0.6
    density_limit: float | None = None
    most: int = 200  # texts that are kept; all count in the density
    name: str = "ocr"
    after: tuple[str, ...] = ("decode",)
    batch: int = 16
    columns: ClassVar[dict[str, type]] = {"density": float, "texts_count": int, "reader": str}
    indexed: ClassVar[tuple[str, ...]] = ("density",)
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        return [self._read(row) for row in rows]

    def _read(self, row: Row) -> Result:
        image = decode(self.blobs.get(row.blob))[0]
        texts = [text for text in self.reader(image) if self._counts(text)]
        share = round(density(texts, image.size), 4)
        value: dict[str, Any] = {
            "texts": [_stored(text) for text in texts[: self.most]],
            "texts_count": len(texts),
            "density": share,
            "reader": self.reader.name,
        }
        over = self.density_limit is not None and share > self.density_limit
        return Result(value=value, drop="text" if over else None)

    def _counts(self, text: Text) -> bool:
        return text.confidence >= self.least_confidence and any(letter.isalnum() for letter in text.text)


def _stored(text: Text) -> dict[str, Any]:
    box = [round(side) for side in text.box]
    return {"text": plain_text(text.text)[0], "confidence": round(text.confidence, 4), "box": box}
