"""Which rows to train on: a budget shared out down a tree of concepts with caps, and weights for rare concepts.

The head of a corpus is cut and its tail kept: hierarchical sampling in the manner of arXiv 2405.15613.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["choose", "rare_weights", "shares"]


def shares(sizes: Sequence[int], budget: int) -> list[int]:
    """How many to take of each child so that they sum to the budget (or to all there is): min(size, cap) each.

    The cap is the largest whole number that the budget allows; what is then left goes one each to the first children
    that have more. ValueError for negative numbers.
    """
    if budget < 0 or any(size < 0 for size in sizes):
        raise ValueError(f"budget {budget} and sizes must not be negative; use 0 to take nothing")
    if sum(sizes) <= budget:
        return list(sizes)
    low, high = 0, max(sizes)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(size, middle) for size in sizes) <= budget else (low, middle - 1)
    taken = [min(size, low) for size in sizes]
    left = budget - sum(taken)
    for place, size in enumerate(sizes):
        if left and size > low:
            taken[place] += 1
            left -= 1
    return taken


def choose(paths: Mapping[str, Sequence[str]], budget: int, *, seed: int = 0) -> list[str]:
    """Up to `budget` ids, sorted, shared out evenly at each level of their paths; paths may differ in length.

    `paths` has for each id its place in the tree, such as ("food", "fruit", "red apple"). Within a leaf and for odd
    ones out the choice depends on the seed and the ids alone, not on their order.
    """
    generator = np.random.default_rng([seed, len(paths)])
    order = sorted(paths)
    generator.shuffle(order)

    def descend(ids: list[str], depth: int, count: int) -> list[str]:
        children: dict[str, list[str]] = defaultdict(list)
        for one in ids:
            children[paths[one][depth] if depth < len(paths[one]) else ""].append(one)
        if len(ids) <= count or all(depth >= len(paths[one]) for one in ids):
            return ids[:count]
        parts = list(children.values())
        taken = shares([len(part) for part in parts], count)
        return [one for part, share in zip(parts, taken, strict=True) for one in descend(part, depth + 1, share)]

    return sorted(descend(order, 0, budget))


def rare_weights(
    concepts: Mapping[str, Sequence[str]], *, target: int, power: float = 0.5, most: float = 4.0
) -> dict[str, float]:
    """A sampling weight per id: the highest (target / count)^power over its concepts, between 1 / most and most.

    `concepts` has the concepts that each id shows; ids without any weigh 1. ValueError unless target and most are >= 1.
    """
    if target < 1 or most < 1:
        raise ValueError(f"target {target} and most {most} must be at least 1; try 20 and 4")
    counts: dict[str, int] = defaultdict(int)
    for named in concepts.values():
        for concept in set(named):
            counts[concept] += 1
    weights: dict[str, float] = {}
    for one, named in concepts.items():
        wanted = max(((target / counts[concept]) ** power for concept in named), default=1.0)
        weights[one] = float(min(most, max(1 / most, wanted)))
    return weights
