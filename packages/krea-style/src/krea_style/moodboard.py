"""Many pictures, one mood: a few of them stand for all, each with the share of those it stands for.

Averaging the style tokens of unlike pictures gives a style that none of them has; so a board keeps up to `most` real
pictures as references, chosen to lie close to the rest. Strengths run from -0.5 to 1.5, 0.35 by default, as in Krea's
product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from krea_style.interfaces import StyleEncoder
from krea_style.reference import Reference, Style, style

__all__ = ["medoids", "moodboard"]

STRENGTHS = (-0.5, 1.5)


def moodboard(images: Sequence[Tensor], encoder: StyleEncoder, *, strength: float = 0.35, most: int = 4) -> Style:
    """The style of one image from any number of pictures `3 H W` in [-1, 1]; the strength is that of the board."""
    low, high = STRENGTHS
    if not low <= strength <= high:
        raise ValueError(f"moodboard strength {strength} is outside {low:g} to {high:g}; 0.35 is a good start")
    if not images or not 1 <= most <= 10:
        raise ValueError(f"a moodboard of {len(images)} pictures and {most} references; give at least 1, at most 10")
    board = [Reference(image=image, strength=1.0) for image in images]  # checks every picture
    tokens = torch.cat([style([reference], encoder).tokens for reference in board])
    chosen, shares = medoids(tokens.detach().flatten(1), min(most, len(images)))
    return Style(tokens[chosen], tuple(strength * share for share in shares), (len(chosen),))


def medoids(points: Tensor, most: int) -> tuple[list[int], list[float]]:
    """Up to `most` of the points `n f` that stand for all, and the share of each; deterministic.

    Greedy: each point added is the one that most lowers the sum of distances to the nearest chosen point; it stops
    early when nothing is left to gain. Does not depend on the order of the points, except between equals.
    """
    points = points.double()
    distances = (points[:, None] - points).norm(dim=2)
    nearest = torch.full((len(points),), float("inf"), dtype=torch.float64)
    chosen: list[int] = []
    while len(chosen) < most:
        sums = torch.minimum(distances, nearest).sum(1)
        best = int(sums.argmin())
        if chosen and float(nearest.sum() - sums[best]) <= 1e-9 * float(distances.max() + 1e-30):
            break
        chosen.append(best)
        nearest = torch.minimum(nearest, distances[best])
    owner = distances[:, chosen].argmin(1)
    return chosen, [float((owner == i).double().mean()) for i in range(len(chosen))]
