"""Features of many pictures in one pass: their mean and covariance, and a uniform sample of the rows themselves.

Fifty thousand pictures do not fit into memory and a reference set never changes, so what is kept of it can be added
up over batches and processes, written to a file, and used for every checkpoint.
"""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from krea_model.evaluate.interfaces import Embedder
from krea_model.plain import is_whole
from krea_model.weights import write_tensors

__all__ = ["Features", "Moments", "embed", "gather", "load", "save"]

FORMAT = "krea-features/1"


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean and spread of rows, in float64. mean: `f`; scatter: `f f`, the sum of outer products of deviations."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Moments":
        """Of `b f`, any b of at least 1; ValueError if a number is not finite."""
        check(rows)
        rows = rows.double()
        mean = rows.mean(0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    def merge(self, other: "Moments") -> "Moments":
        """Of the rows of both, without cancellation (Chan, Golub and LeVeque 1983); ValueError for other widths."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features of width {len(self.mean)} and {len(other.mean)}; merge those of one encoder")
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """`f f`, unbiased; ValueError for a single row."""
        if self.count < 2:
            raise ValueError(f"a covariance of {self.count} picture; give at least 2")
        return self.scatter / (self.count - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """All rows' moments, and a uniform sample of rows, `m f`, drawn without replacement.

    keys: `m`, ascending: each row has a random number from (seed, its place) and those with the smallest ones stay, so
    the sample depends neither on batches nor on processes.
    """

    moments: Moments
    kept: Tensor
    keys: Tensor

    @classmethod
    def of(cls, rows: Tensor, *, keep: int = 10_000, seed: int = 0, first: int = 0) -> "Features":
        """Of `b f`; `first` is the place of the first row in the whole set."""
        check(rows)
        if not is_whole(keep, 1):
            raise ValueError(f"keep is {keep!r}; give how many rows to keep, at least 1")
        keys = torch.tensor([random.Random(f"{seed}/{first + i}").random() for i in range(len(rows))])
        chosen = keys.double().argsort(stable=True)[:keep]
        return cls(Moments.of(rows), rows[chosen].float(), keys[chosen])

    def merge(self, other: "Features", *, keep: int = 10_000) -> "Features":
        """Of both parts of a set; they must have been given different places by `first`."""
        keys = torch.cat([self.keys, other.keys])
        chosen = keys.argsort(stable=True)[:keep]
        return Features(self.moments.merge(other.moments), torch.cat([self.kept, other.kept])[chosen], keys[chosen])


def embed(batches: Iterable[Tensor], embedder: Embedder) -> Tensor:
    """Features of every picture in order, `b f`; each batch is `b 3 H W`, uint8, batches may differ in size."""
    parts = [embedder(pixels(batch)) for batch in batches]
    if not parts:
        raise ValueError("no pictures to embed; give at least one batch")
    found = torch.cat(parts)
    check(found)
    return found


def gather(
    batches: Iterable[Tensor],
    vision: Mapping[str, Embedder],
    *,
    keep: int = 10_000,
    seed: int = 0,
    first: int = 0,
) -> dict[str, Features]:
    """Features of a set by each encoder, in one pass over its batches `b 3 H W`, uint8.

    On several processes, give each the place of its first picture in the whole set and merge the results.
    """
    found: dict[str, Features] = {}
    for batch in batches:
        for name, embedder in vision.items():
            part = Features.of(embedder(pixels(batch)), keep=keep, seed=seed, first=first)
            found[name] = found[name].merge(part, keep=keep) if name in found else part
        first += len(batch)
    if not found:
        raise ValueError("a set without pictures or without encoders has no features; give at least one of each")
    return found


def save(path: str | Path, features: Features, label: str) -> None:
    """Write one file; `label` says which encoder, at which size, on which pictures: `load` asks for it again."""
    tensors = {"mean": features.moments.mean, "scatter": features.moments.scatter}
    tensors |= {"kept": features.kept, "keys": features.keys}
    head = {"format": FORMAT, "label": label, "count": features.moments.count}
    write_tensors(path, tensors, {"features": json.dumps(head)})


def load(path: str | Path, label: str) -> Features:
    """What `save` wrote under the same label; ValueError for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {}).get("features", "{}"))
            if not isinstance(head, dict) or head.get("format") != FORMAT:
                raise ValueError(f"{path} does not hold features of pictures; make it with evaluate.save")
            if head.get("label") != label:
                raise ValueError(f"{path} holds features of {head.get('label')!r}, not of {label!r}; gather them anew")
            mean, scatter, kept, keys = (file.get_tensor(name) for name in ("mean", "scatter", "kept", "keys"))
        if not is_whole(head.get("count"), 1) or scatter.shape != (len(mean), len(mean)) or len(kept) != len(keys):
            raise ValueError(f"{path} contradicts itself (pictures, mean, scatter, rows); gather the features anew")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; gather the features and save them there") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); gather the features anew"
        ) from error
    return Features(Moments(head["count"], mean, scatter), kept, keys)


def pixels(batch: Tensor) -> Tensor:
    """The batch, if it is one of pictures; else ValueError."""
    if batch.ndim != 4 or batch.shape[1] != 3 or batch.dtype != torch.uint8:
        raise ValueError(f"pictures of shape {tuple(batch.shape)} in {batch.dtype}; give (count, 3, H, W) in uint8")
    return batch


def check(rows: Tensor) -> None:
    """ValueError unless rows are `b f`, some, and finite."""
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"features of shape {tuple(rows.shape)}; give (pictures, features), at least one picture")
    if not rows.isfinite().all():
        row = int((~rows.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"the features of picture {row} are not finite; look at that picture and at the encoder")
