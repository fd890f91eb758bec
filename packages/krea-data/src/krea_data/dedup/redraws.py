"""Redraws: the same thing drawn again, which no hash sees and an embedding does. They are proposed, never dropped.

Pictures are compared inside clusters of the embedding space alone, since all pairs of a large table are too many; a
picture belongs to its two nearest clusters, so that a border between two of them parts few redraws.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krea_data.dedup.codes import codes_from, node_of
from krea_data.dedup.index import Index
from krea_data.dedup.notes import End, write
from krea_data.rows import Row

__all__ = ["Embed", "Redraws", "clusters", "column", "propose", "similar"]

Embed = Callable[[Sequence[Row]], NDArray[np.floating]]
"""Embeddings `n f` of rows."""
_CHUNK = 2000  # pictures of a cluster compared with all others of it at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Redraws:
    """How redraws are looked for."""

    limit: float = 0.95  # cosine
    of: int = 1000  # pictures of a cluster, about
    name: str = "embedding"  # whose similarity it is, for the reason

    def __post_init__(self) -> None:
        if not (0 < self.limit <= 1 and self.of > 1):
            raise ValueError(f"a limit of {self.limit} and clusters of {self.of} make no sense; use 0.95 and 1000")

    @property
    def rule(self) -> str:
        """The limit in words."""
        return f"cosine of {self.name} >= {self.limit}"


def column(task: str, key: str) -> Embed:
    """Embeddings that a task has stored as lists of numbers in its results."""

    def embed(rows: Sequence[Row]) -> NDArray[np.floating]:
        for row in rows:
            if task not in row.results or key not in row.results[task].value:
                raise ValueError(f"row {row.id} has no {key} of the task {task}; run it before")
        return np.array([row.results[task].value[key] for row in rows], dtype=np.float32)

    return embed


def clusters(unit: NDArray[np.floating], of: int, *, seed: int = 0, rounds: int = 10) -> NDArray[np.intp]:
    """The two nearest centres `n 2` of each unit vector, for clusters of about so many (spherical k-means)."""
    count = -(-len(unit) // of)
    if count < 2:
        return np.zeros((len(unit), 1), dtype=np.intp)
    draw = np.random.default_rng(seed)
    centres = unit[draw.choice(len(unit), count, replace=False)]
    for _ in range(rounds):
        nearest = np.concatenate([(part @ centres.T).argmax(axis=1) for part in _parts(unit)])
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, unit)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 0, sums / np.maximum(length, 1e-12), centres)
    return np.concatenate([np.argpartition(-(part @ centres.T), 1, axis=1)[:, :2] for part in _parts(unit)])


def similar(
    vectors: NDArray[np.floating], redraws: Redraws, labels: NDArray[np.integer] | None = None
) -> dict[tuple[int, int], float]:
    """All pairs (i < j) inside the same cluster with at least that cosine; `labels` n or `n k` are the clusters.

    Without labels the clusters are made here. A vector of zeros, or one with what is no number, is like nothing.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    good = np.flatnonzero(np.isfinite(length[:, 0]) & (length[:, 0] > 0))
    unit = (vectors[good] / length[good]).astype(np.float32)
    groups = clusters(unit, redraws.of) if labels is None else np.asarray(labels).reshape(len(vectors), -1)[good]
    found: dict[tuple[int, int], float] = {}
    for label in np.unique(groups):
        mine = np.flatnonzero((groups == label).any(axis=1))
        for start in range(0, len(mine), _CHUNK):
            near = unit[mine[start : start + _CHUNK]] @ unit[mine].T
            for left, right in np.argwhere(near >= redraws.limit).tolist():
                one, other = int(good[mine[left + start]]), int(good[mine[right]])
                if one < other:
                    found[one, other] = min(1.0, float(near[left, right]))
    return found


def propose(
    index: Index, rows: Sequence[Row], embed: Embed, redraws: Redraws, labels: NDArray[np.integer] | None = None
) -> dict[tuple[str, str], float]:
    """Write down as links of the kind "redraw" what looks alike, and return it by the ids of two rows.

    No row goes because of them. Rows with equal bytes are one picture; of those the first is embedded.
    """
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(node_of(row.blob), place)
    nodes, places = list(first), list(first.values())
    picked = [rows[place] for place in places]
    chosen = None if labels is None else np.asarray(labels)[places]
    pairs = similar(embed(picked), redraws, chosen)
    links = [
        End(nodes[mine], nodes[other], "redraw", redraws.rule, similarity=similarity)
        for (left, right), similarity in pairs.items()
        for mine, other in ((left, right), (right, left))
    ]
    write(index.krablet, codes_from([]), index.limits, links, [], [])
    return {(picked[left].id, picked[right].id): similarity for (left, right), similarity in pairs.items()}


def _parts(unit: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    for start in range(0, len(unit), _CHUNK):
        yield unit[start : start + _CHUNK]
