"""Endless, replayable batches from an export: batch number n is a pure function of the seed, n and the rank."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from krea_data.shards import index

try:
    import torch
except ImportError as error:
    raise ImportError("the loader needs torch: pip install 'krea-data[torch]'") from error

__all__ = ["Batches", "ImageBatch"]

_ORDER = 0  # the stream of random numbers that orders an epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBatch:
    """Pictures `b 3 H W` as uint8, and for each its captions by length and its id."""

    images: torch.Tensor
    captions: tuple[Mapping[str, str], ...]
    ids: tuple[str, ...]


def _read(folder: Path, record: Mapping[str, Any], side_px: int | None) -> np.ndarray:
    """One picture `3 H W`, its longer side brought to `side_px` by averaging areas."""
    with (folder / record["shard"]).open("rb") as file:
        file.seek(record["offset"])
        image = Image.open(io.BytesIO(file.read(record["bytes"]))).convert("RGB")
    if side_px is not None and side_px != max(image.size):
        scale = side_px / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1)


class Batches:
    """All pictures of an export in memory, one order per epoch, one epoch after the other without a seam.

    Batch n of a rank takes the places (n * world + rank) * batch and following of the endless order, so over all
    ranks every picture comes once per epoch. `state_dict` holds the number of the next batch.
    """

    def __init__(
        self,
        folder: Path,
        batch: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        side_px: int | None = None,
        keep: Callable[[Mapping[str, Any]], bool] = lambda record: True,
    ) -> None:
        """`keep` chooses records of the index, for example by their meta. ValueError if nothing or two sizes remain."""
        if batch < 1 or not 0 <= rank < world:
            raise ValueError(f"batch {batch} must be at least 1 and rank {rank} from 0 to world - 1 = {world - 1}")
        self.records = tuple(record for record in index(Path(folder)) if keep(record))
        if not self.records:
            raise ValueError(f"no picture of {folder} is kept; loosen `keep` or export some")
        sizes = sorted({(record["width"], record["height"]) for record in self.records})
        if len(sizes) > 1:
            raise ValueError(f"{folder} has pictures of {len(sizes)} sizes ({sizes[:3]}...); keep one size per loader")
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world
        self._images = torch.from_numpy(np.stack([_read(Path(folder), one, side_px) for one in self.records]))
        self._next = 0
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Pictures in an epoch."""
        return len(self.records)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            kept = {number: order for number, order in self._orders.items() if abs(number - epoch) <= 1}
            fresh = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.records))
            self._orders = kept | {epoch: fresh}
        return self._orders[epoch]

    def at(self, number: int) -> ImageBatch:
        """Batch `number` of this rank."""
        start = (number * self.world + self.rank) * self.batch
        places = [divmod(place, len(self.records)) for place in range(start, start + self.batch)]
        chosen = [int(self._order(epoch)[place]) for epoch, place in places]
        return ImageBatch(
            images=self._images[chosen],
            captions=tuple(self.records[one]["captions"] for one in chosen),
            ids=tuple(self.records[one]["id"] for one in chosen),
        )

    def __iter__(self) -> Iterator[ImageBatch]:
        """Batches from the next one on, without end."""
        while True:
            self._next += 1
            yield self.at(self._next - 1)

    def _stream(self) -> dict[str, int]:
        return {"seed": self.seed, "batch": self.batch, "world": self.world, "pictures": len(self.records)}

    def state_dict(self) -> dict[str, Any]:
        """The number of the next batch, and what the order depends on."""
        return {"next": self._next, **self._stream()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; ValueError if it comes from another stream."""
        for key, mine in self._stream().items():
            if state[key] != mine:
                raise ValueError(f"the saved stream had {key} {state[key]}, this one has {mine}; use the same settings")
        self._next = int(state["next"])
