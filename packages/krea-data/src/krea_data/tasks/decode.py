"""The first look at a row: can its picture be decoded, and is it of a size and shape to train on."""

from collections.abc import Sequence
from dataclasses import dataclass

from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.picture import BombError, BrokenError, look

__all__ = ["Decode"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decode:
    """Drops "missing", "bomb", "broken", "small" and "aspect"; keeps width, height, aspect and format.

    A row without a blob is missing, with the reason that its source gave. Where there is something to tell, the value
    also has what `krea_data.tasks.picture.Picture` notes: frames, alpha, mode, orientation, profile, odd.
    """

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
        return [self._look(self.blobs.get(row.blob)) if row.blob else _missing(row) for row in rows]

    def _look(self, data: bytes) -> Result:
        try:
            found = look(data, self.pixels_limit)
        except BombError as error:
            return Result(value={"error": str(error)}, drop="bomb")
        except BrokenError as error:
            return Result(value={"error": str(error).replace("\0", "")[:300]}, drop="broken")
        image = found.image
        short, long = sorted(image.size)
        value = {
            "width": image.width,
            "height": image.height,
            "aspect": round(long / short, 4),
            "format": found.format,
            "bytes": len(data),
            **found.notes,
        }
        if short < self.least_px:
            return Result(value=value, drop="small")
        return Result(value=value, drop="aspect" if long > self.aspect_limit * short else None)


def _missing(row: Row) -> Result:
    problem = str(row.meta.get("problem") or "its source gave no picture and no reason")
    return Result(value={"error": problem[:300]}, drop="missing")
