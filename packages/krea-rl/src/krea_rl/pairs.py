"""Pairs of pictures with their origin: where each member came from is stored, and checked.

Most pairs should hold at least one picture of the model that is being tuned (Krea 2 technical report, section
"Preference optimization"); a `PairSet` refuses to exist below that share.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from krea_model.tensorfiles import replaced
from krea_train.random import generator, normals
from torch import Tensor

__all__ = [
    "Corruption",
    "Member",
    "Pair",
    "PairBatch",
    "PairBatches",
    "PairSet",
    "best_and_worst",
    "corrupt",
    "settle",
]

Corruption = Literal["blur", "noise", "saturate", "shuffle"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One picture. image: its key for the loader (a path or a hash); origin: what made it, for example "step-1200"."""

    image: str
    origin: str
    on_policy: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A preferred and a rejected picture of one prompt, with the reason ("human", "reward:text", "corruption:blur")."""

    prompt: str
    winner: Member
    loser: Member
    reason: str

    def __post_init__(self) -> None:
        if self.winner.image == self.loser.image:
            raise ValueError(f"both members of a pair are {self.winner.image!r}; a pair needs two pictures")

    @property
    def id(self) -> str:
        return f"{self.winner.image}>{self.loser.image}"


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs of which more than `minimum` hold an on-policy picture; ValueError otherwise, or if there are none."""

    pairs: tuple[Pair, ...]
    minimum: float = 0.5

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("a set of 0 pairs; give at least one")
        if self.share <= self.minimum:
            raise ValueError(
                f"on-policy share {self.share:.3f} of {len(self.pairs)} pairs is not above {self.minimum}; "
                "add pairs drawn from the model that is tuned, or leave out others"
            )

    @property
    def share(self) -> float:
        """Part of the pairs with at least one on-policy member."""
        return sum(pair.winner.on_policy or pair.loser.on_policy for pair in self.pairs) / len(self.pairs)

    def save(self, path: Path) -> None:
        """Write one JSON object a line; the file appears whole or not at all."""
        with replaced(path) as part, part.open("w", encoding="utf-8") as file:
            for pair in self.pairs:
                file.write(json.dumps(asdict(pair), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path, minimum: float = 0.5) -> "PairSet":
        """Read what `save` wrote; ValueError names the line that is not a pair."""
        pairs = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                winner, loser = Member(**row["winner"]), Member(**row["loser"])
                pairs.append(Pair(prompt=row["prompt"], winner=winner, loser=loser, reason=row["reason"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"line {number} of {path} is not a pair ({error}); repair or remove it") from error
        return cls(tuple(pairs), minimum)


@dataclass(frozen=True, slots=True)
class PairBatch:
    """A krea-train Batch of pairs: picture 2i is the winner of pair i, picture 2i + 1 its loser."""

    images: Tensor
    captions: Sequence[Mapping[str, str]]
    ids: Sequence[str]


class PairBatches:
    """An endless, replayable stream of pair batches; batch n is a pure function of (seed, n).

    load: key of a picture -> `3 H W`, uint8; all pictures of a batch must have one size.
    """

    def __init__(self, pairs: PairSet, load: Callable[[str], Tensor], size: int, seed: int = 0) -> None:
        if not 1 <= size <= len(pairs.pairs):
            raise ValueError(f"batches of {size} from {len(pairs.pairs)} pairs; use 1 to {len(pairs.pairs)}")
        self.pairs, self.load, self.size, self.seed = pairs.pairs, load, size, seed
        self.place = 0

    def __iter__(self) -> Iterator[PairBatch]:
        while True:
            batch = self.batch(self.place)
            self.place += 1
            yield batch

    def batch(self, number: int) -> PairBatch:
        """Batch `number` of the stream: whole epochs of a shuffled order, without the incomplete rest."""
        epoch, place = divmod(number, len(self.pairs) // self.size)
        order = torch.randperm(len(self.pairs), generator=generator(self.seed, "pairs", epoch))
        chosen = [self.pairs[i] for i in order[place * self.size : (place + 1) * self.size].tolist()]
        images = [self.load(member.image) for pair in chosen for member in (pair.winner, pair.loser)]
        if len({image.shape for image in images}) > 1:
            raise ValueError(f"pictures of shapes {sorted({tuple(i.shape) for i in images})} in one batch; resize them")
        return PairBatch(
            torch.stack(images),
            [{"long": pair.prompt} for pair in chosen for _ in range(2)],
            [name for pair in chosen for name in (pair.id, f"{pair.id}:loser")],
        )

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.place = int(state["place"])


def best_and_worst(
    prompts: Sequence[str], scores: Tensor, images: Sequence[Sequence[str]], *, origin: str, margin: float
) -> list[Pair]:
    """The best and the worst picture of each on-policy group whose scores `p g` differ by at least `margin`."""
    pairs = []
    for prompt, row, keys in zip(prompts, scores, images, strict=True):
        high, low = int(row.argmax()), int(row.argmin())
        if float(row[high] - row[low]) < margin or high == low:
            continue
        winner, loser = (Member(image=keys[i], origin=origin, on_policy=True) for i in (high, low))
        pairs.append(Pair(prompt=prompt, winner=winner, loser=loser, reason="best of group"))
    return pairs


def settle(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Kept and dropped pairs: judgements of one prompt and two pictures that contradict each other go, both."""
    seen = {(pair.prompt, pair.winner.image, pair.loser.image) for pair in pairs}
    kept: list[Pair] = []
    dropped: list[Pair] = []
    for pair in pairs:
        against = (pair.prompt, pair.loser.image, pair.winner.image) in seen
        (dropped if against else kept).append(pair)
    return kept, dropped


def corrupt(image: Tensor, kind: Corruption, seed: int, sample: int | str) -> Tensor:
    """A worse version of a picture `3 H W` uint8, to lose against the original; noise from (seed, sample)."""
    x = image.float() / 255
    if kind == "blur":
        x = F.avg_pool2d(F.pad(x[None], (2, 2, 2, 2), mode="replicate"), 5, stride=1)[0]
    elif kind == "noise":
        x = x + 0.1 * normals(seed, "corrupt", 0, [sample], x.shape)[0]
    elif kind == "saturate":
        x = x.mean(0) + 2.5 * (x - x.mean(0))
    elif kind == "shuffle":
        x = _shuffle(x, generator(seed, "corrupt", 0, sample))
    else:
        raise ValueError(f"corruption {kind!r} is not one of blur, noise, saturate, shuffle")
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def _shuffle(x: Tensor, draws: torch.Generator) -> Tensor:
    """Exchange the four quarters of a picture (an odd last row or column stays), never leaving all in place."""
    h, w = x.shape[1] // 2, x.shape[2] // 2
    quarters = [x[:, i * h : (i + 1) * h, j * w : (j + 1) * w] for i in range(2) for j in range(2)]
    turn = int(torch.randint(1, 4, (), generator=draws))
    out = x.clone()
    for place in range(4):
        i, j = divmod(place, 2)
        out[:, i * h : (i + 1) * h, j * w : (j + 1) * w] = quarters[(place + turn) % 4]
    return out
