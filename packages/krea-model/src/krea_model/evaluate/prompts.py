"""Pictures against their prompts: does each show what was asked for, and do those of one prompt differ?"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from krea_model.evaluate.features import check
from krea_model.plain import is_whole

__all__ = ["Places", "diversity", "retrieval_rank", "vendi"]


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where each picture's own prompt stands among all.

    similarity: `b`, the cosine to it; better: `b`, how many prompts are nearer; equal: `b`, how many others are as
    near.
    """

    similarity: Tensor
    better: Tensor
    equal: Tensor

    @property
    def ranks(self) -> Tensor:
        """`b`, float64: 1 is best; among equals the mean of their places, so that an encoder that sees nothing is at
        the middle, not first.
        """
        return 1 + self.better + self.equal / 2

    def recall(self, k: int) -> Tensor:
        """`b`: the chance that the own prompt is among the first k, equals being in random order."""
        return ((k - self.better) / (self.equal + 1)).clamp(0, 1)


def retrieval_rank(images: Tensor, texts: Tensor, own: Sequence[int]) -> Places:
    """The rank of each picture's own prompt by cosine; images `b e`, texts `p e`, own: a row of texts for each picture.

    Give every prompt once: two rows for one prompt count as equals.
    """
    check(images)
    check(texts)
    fit = len(own) == len(images) and all(is_whole(row, 0) and row < len(texts) for row in own)
    if not fit or images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"pictures {tuple(images.shape)}, prompts {tuple(texts.shape)} and {len(own)} places of own prompts do not "
            "fit; give one row of the prompts for each picture, in one space"
        )
    near = F.normalize(images.double(), dim=1) @ F.normalize(texts.double(), dim=1).T
    mine = near.gather(1, torch.tensor(own)[:, None])
    slack = 1e-12  # equal texts may differ by rounding
    better, equal = (near > mine + slack).sum(1), ((near - mine).abs() <= slack).sum(1) - 1
    return Places(mine[:, 0], better.double(), equal.double())


def diversity(embeddings: Tensor, groups: Sequence[Hashable]) -> dict[Hashable, float]:
    """Mean cosine distance between the pictures of each group: 0 if all are alike, about 1 if they share nothing.

    embeddings: `b f`, from an encoder that sees layout and style such as DINO; groups: the prompt of each picture.
    Groups of one picture are left out; ValueError if there is no other.
    """
    check(embeddings)
    if len(groups) != len(embeddings):
        raise ValueError(f"{len(embeddings)} pictures in {len(groups)} groups; name the group of each")
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    unit = _directions(embeddings)
    found = {group: _distance(unit[chosen]) for group, chosen in rows.items() if len(chosen) > 1}
    if not found:
        raise ValueError(f"{len(rows)} prompts with one picture each have no diversity; draw at least 2 of each")
    return found


def _directions(rows: Tensor) -> Tensor:
    """Rows `b f` at length 1, `b f+1`; those of zeros, which have no direction, share one of their own."""
    rows = rows.double()
    return F.normalize(torch.cat([rows, (rows == 0).all(1, keepdim=True).double()], 1), dim=1)


def _distance(unit: Tensor) -> float:
    n = len(unit)
    return max(0.0, float(1 - (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))))


def vendi(embeddings: Tensor) -> float:
    """How many different pictures `b f` there are, in effect, from 1 to b (Vendi score, arXiv 2210.02410, cosines)."""
    check(embeddings)
    unit = _directions(embeddings)
    wide = len(unit) <= unit.shape[1]
    values = torch.linalg.eigvalsh((unit @ unit.T if wide else unit.T @ unit) / len(unit)).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())
