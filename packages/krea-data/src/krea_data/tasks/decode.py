"""The first look at a row: can its picture be decoded, and is it of a size and shape to train on."""

from collections.abc import Sequence
from dataclasses import dataclass

from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.picture import BombError, BrokenError, decode

__all__ = ["Decode"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decode:
    """Drops "bomb", "broken", "small" and "aspect"; keeps width, height, aspect and format."""

    blobs: Blobs
    least_px: int = 32  # of the shorter side
    aspect_limit: float = 3.0  # longer side over shorter side
    pixels_limit: int = 64_000_000
    name: str = "decode"
    after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.least_px < 1 or self.aspect_limit < 1 or self.pixels_limit < 1:
            raise ValueError(
                f"limits of decode must be at least 1, not least_px {self.least_px}, "
                f"aspect_limit {self.aspect_limit}, pixels_limit {self.pixels_limit}"
            )

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row; a blob that is not in the store raises KeyError."""
        return [self._look(self.blobs.get(row.blob)) for row in rows]

    def _look(self, data: bytes) -> Result:
        try:
            image, form = decode(data, self.pixels_limit)
        except BombError as error:
            return Result(value={"error": str(error)}, drop="bomb")
        except BrokenError as error:
            return Result(value={"error": str(error).replace("\0", "")[:300]}, drop="broken")
        short, long = sorted(image.size)
        value = {
            "width": image.width,
            "height": image.height,
            "aspect": round(long / short, 4),
            "format": form,
            "bytes": len(data),
        }
        if short < self.least_px:
            return Result(value=value, drop="small")
        return Result(value=value, drop="aspect" if long > self.aspect_limit * short else None)
