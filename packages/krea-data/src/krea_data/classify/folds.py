"""Every row once held out: folds that keep groups together, such as all re-encodings of one picture."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["folds"]


def folds(
    targets: NDArray[np.bool_], count: int, seed: int, groups: Sequence[Hashable] | None = None
) -> NDArray[np.int64]:
    """The fold of each row, 0 to count - 1, drawn by the seed; rows of a group share one, classes are spread evenly.

    A group counts as positive if any of its rows is. ValueError with fewer groups of a class than folds.
    """
    names = list(range(len(targets))) if groups is None else list(groups)
    if len(names) != len(targets):
        raise ValueError(f"{len(names)} groups for {len(targets)} rows; name one for each row")
    kinds: dict[Hashable, tuple[bool, bool]] = {}
    for name, target in zip(names, targets.tolist(), strict=True):
        no, yes = kinds.get(name, (False, False))
        kinds[name] = (no or not target, yes or bool(target))
    for word, place in (("no", 0), ("yes", 1)):
        if (have := sum(kind[place] for kind in kinds.values())) < count:
            raise ValueError(f"{have} groups with the answer {word} are too few for {count} folds; label more rows")
    draw, found = np.random.default_rng(seed), {}
    for kind in sorted(set(kinds.values())):
        members = [name for name, own in kinds.items() if own == kind]
        for place, member in enumerate(draw.permutation(len(members)).tolist()):
            found[members[member]] = place % count
    return np.array([found[name] for name in names], dtype=np.int64)
