"""Fakes for tests and first steps: a corpus of coloured squares, its latents and text, and a log that remembers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from krea_model.interfaces import Conditioning
from torch import Tensor

from krea_train.interfaces import Batch
from krea_train.random import generator, normals

__all__ = ["Recorder", "SquareBatch", "Squares", "WordStates", "pixels"]

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220), "yellow": (240, 220, 50)}
PLACES = ("left", "right", "top", "bottom")


@dataclass(frozen=True, kw_only=True, slots=True)
class SquareBatch:
    """A `Batch` of coloured squares."""

    images: Tensor
    captions: Sequence[Mapping[str, str]]
    ids: Sequence[str]


@dataclass(kw_only=True, slots=True)
class Squares:
    """`Batches` of grey pictures with one square of one of four colours at one of four places; 16 different ones.

    rank and ranks: this process takes its share of the same global batch.
    """

    count: int = 8
    side_px: int = 16
    seed: int = 0
    rank: int = 0
    ranks: int = 1
    position: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = torch.randperm(16 * self.count, generator=generator(self.seed, "order", self.position)).tolist()
            share = self.count // self.ranks
            rows = range(self.rank * share, (self.rank + 1) * share)
            self.position += 1
            yield self.batch([order[i] % 16 for i in rows], [f"{self.position - 1}/{i}" for i in rows])

    def batch(self, kinds: Sequence[int], ids: Sequence[str]) -> SquareBatch:
        """The pictures of those numbers, 0 to 15."""
        return SquareBatch(
            images=torch.stack([self._image(kind) for kind in kinds]),
            captions=[self._captions(kind) for kind in kinds],
            ids=list(ids),
        )

    def _image(self, kind: int) -> Tensor:
        side, half = self.side_px, self.side_px // 2
        image = torch.full((3, side, side), 128, dtype=torch.uint8)
        place = PLACES[kind % 4]
        start = {"left": (half // 2, 0), "right": (half // 2, half), "top": (0, half // 2), "bottom": (half, half // 2)}
        row, column = start[place]
        colour = torch.tensor(list(COLOURS.values())[kind // 4], dtype=torch.uint8)
        image[:, row : row + half, column : column + half] = colour[:, None, None]
        return image

    def _captions(self, kind: int) -> dict[str, str]:
        colour, place = list(COLOURS)[kind // 4], PLACES[kind % 4]
        return {
            "short": f"{colour} {place}",
            "medium": f"{colour} square {place}",
            "long": f"a {colour} square at the {place} of a grey picture",
        }

    def state_dict(self) -> dict[str, Any]:
        """The number of batches given out."""
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after that many batches."""
        self.position = state["position"]


def pixels(batch: Batch, step: int) -> Tensor:
    """Pictures as their own latents: `b 3 H W` in [-1, 1]."""
    return batch.images.float() / 127.5 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class WordStates:
    """A text encoder without learning: each word has fixed random states `taps width`; the empty prompt is one word."""

    taps: int = 3
    width: int = 32

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        words = [prompt.split() or [""] for prompt in prompts]
        states = normals(0, "words", 0, [word for row in words for word in row], (self.taps, self.width))
        return Conditioning(states, tuple(len(row) for row in words))


@dataclass(slots=True)
class Recorder:
    """A `Log` that keeps what it was told."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))

    def curve(self, name: str) -> list[float]:
        """One metric over the log steps."""
        return [metrics[name] for _, metrics in self.rows]
