"""Hierarchical k-means: clusters of vectors, clusters of their centres, and so on (arXiv 2405.15613).

Plain k-means spends its clusters where the pictures are. Before the next level is made, every level is clustered again
from the few members nearest to each centre, so that crowded regions count for no more than others (section 3.3 there).
The outcome is a path for each row, from the coarsest cluster to the finest, which `krea_data.sample.choose` shares a
budget out over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

try:
    import faiss
except ImportError as error:
    raise ImportError("clusters need faiss: pip install 'krea-data[balance]'") from error

__all__ = ["Tree", "cluster"]

_TRIES = 5  # from other random centres; the best counts
_POINTS = 256  # of each cluster that k-means looks at, as in faiss


@dataclass(frozen=True, slots=True)
class Tree:
    """`members`: for each level, the finest first, the cluster of every row; `centres`: their vectors `k features`."""

    members: tuple[NDArray[np.int64], ...]
    centres: tuple[NDArray[np.float32], ...]

    def paths(self) -> list[tuple[str, ...]]:
        """Each row's clusters from the coarsest to the finest, by number."""
        columns = [[str(number) for number in level.tolist()] for level in reversed(self.members)]
        return list(zip(*columns, strict=True))

    def assign(self, vectors: NDArray[np.float32]) -> "Tree":
        """The same clusters with other rows in them: each goes to the nearest finest cluster, and up from there."""
        finest = _nearest(_unit(vectors), self.centres[0])
        members = [finest]
        for below, above in zip(self.centres, self.centres[1:], strict=False):
            members.append(_nearest(below, above)[members[-1]])
        return Tree(tuple(members), self.centres)


def cluster(
    vectors: NDArray[np.float32], sizes: Sequence[int], *, rounds: int = 3, nearest: int = 8, seed: int = 0
) -> Tree:
    """Clusters of rows `n features` by direction: `sizes[0]` fine ones, `sizes[1]` clusters of these, and so on.

    Every level is clustered `rounds` times, from the second on from the `nearest` members of each centre. The same
    vectors and seed give the same tree. ValueError unless sizes fall and there are vectors enough.
    """
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError(f"vectors of shape {vectors.shape} are no finite `n features`; give one row for each picture")
    falling = list(sizes) == sorted(set(sizes), reverse=True)
    if not sizes or not falling or not 1 <= sizes[-1] <= sizes[0] <= len(vectors):
        given = f"{tuple(sizes)} clusters of {len(vectors)} vectors"
        raise ValueError(f"{given}: their numbers must fall from level to level, such as (100, 10)")
    points, members, centres = _unit(vectors), list[NDArray[np.int64]](), list[NDArray[np.float32]]()
    for level, size in enumerate(sizes):
        found = _level(points, size, rounds, nearest, seed + 1000 * level)
        here = _nearest(points, found)
        members.append(here if not members else here[members[-1]])
        centres.append(found)
        points = found
    return Tree(tuple(members), tuple(centres))


def _level(points: NDArray[np.float32], size: int, rounds: int, nearest: int, seed: int) -> NDArray[np.float32]:
    centres = _kmeans(points, size, seed)
    for number in range(1, rounds):
        chosen = _near_centres(points, centres, nearest)
        if len(chosen) < size:
            break
        centres = _kmeans(points[chosen], size, seed + number)
    return centres


def _kmeans(points: NDArray[np.float32], size: int, seed: int) -> NDArray[np.float32]:
    if size == len(points):
        return points.copy()
    means = faiss.Kmeans(
        points.shape[1],
        size,
        niter=20,
        nredo=_TRIES,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=_POINTS,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )
    means.train(points)
    return np.asarray(means.centroids, dtype=np.float32).reshape(size, -1)


def _near_centres(points: NDArray[np.float32], centres: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The places of the `count` members nearest to each centre, in order."""
    nearness, mine = _searched(points, centres)
    order = np.lexsort((-nearness, mine))
    _, starts = np.unique(mine[order], return_index=True)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return np.sort(order[rank < count])


def _nearest(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    return _searched(points, centres)[1]


def _searched(
    points: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    index = faiss.IndexFlatIP(centres.shape[1])
    index.add(np.ascontiguousarray(centres))
    nearness, found = index.search(np.ascontiguousarray(points), 1)
    return nearness[:, 0], found[:, 0].astype(np.int64)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    found = np.ascontiguousarray(vectors, dtype=np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
