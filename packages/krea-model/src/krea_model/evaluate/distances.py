"""Distances between two sets of pictures, by the features of any encoder, in float64.

The Frechet distance is the familiar number, but of few pictures it is too large; the kernel distance is unbiased at any
number. Compare distances only with the same encoder, reference and number of pictures.
"""

import logging

import torch
from torch import Tensor

from krea_model.evaluate.bootstrap import Estimate, draws, percentile
from krea_model.evaluate.features import Moments, check
from krea_model.plain import is_whole

__all__ = ["frechet", "frechet_limit", "kernel_distance", "kernel_estimate", "precision_recall"]

log = logging.getLogger(__name__)

ROWS = 4096  # of a matrix of distances at a time


def frechet(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """Squared Wasserstein distance of two Gaussians, |ma - mb|^2 + tr(A + B - 2 (A B)^1/2) (arXiv 1706.08500).

    a, b: features `b f` or their moments. Biased: it grows as pictures get fewer; a warning says when they are fewer
    than features.
    """
    a, b = (x if isinstance(x, Moments) else Moments.of(x) for x in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of width {len(a.mean)} and {len(b.mean)}; use the same encoder for both sets")
    few = min(a.count, b.count)
    if few <= len(a.mean):
        log.warning(
            "Frechet distance of %d pictures with %d features is far too large; prefer the kernel distance",
            few,
            len(a.mean),
        )
    return _frechet(a, b, _root(b.covariance))


def frechet_limit(a: Tensor, b: Tensor | Moments, *, seed: int = 0, points: int = 6) -> float:
    """The Frechet distance that infinitely many pictures like a would have (arXiv 1911.07023).

    The distance of random subsets of a, from a quarter of it to all, is fitted as a line over 1 / count. With 8
    pictures to each feature a tenth of the bias is left, with the other sign; with fewer it is worse than none. The
    reference b stays as it is.
    """
    b = b if isinstance(b, Moments) else Moments.of(b)
    if len(a) < 8:
        raise ValueError(f"{len(a)} pictures are too few to extrapolate from; give at least 8")
    root = _root(b.covariance)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(len(a) / 4, len(a), points).round().long().tolist()
    found = [_frechet(Moments.of(a[torch.randperm(len(a), generator=generator)[:size]]), b, root) for size in sizes]
    line = torch.stack([torch.ones(points), 1 / torch.tensor(sizes)], 1).double()
    return float(torch.linalg.lstsq(line, torch.tensor(found, dtype=torch.float64)[:, None]).solution[0])


def _frechet(a: Moments, b: Moments, root: Tensor) -> float:
    """root: of b's covariance. The trace of (A B)^1/2 is the sum of the singular values of root(A)^T root(B)."""
    cross = torch.linalg.svdvals(_root(a.covariance).T @ root).sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def _root(covariance: Tensor) -> Tensor:
    """`f r` with R R^T the covariance; directions that are only rounding errors are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    real = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, real] * values[real].sqrt()


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x y / f + 1)^3, unbiased, so it may be negative.

    a, b: features `b f`, at least 2 rows each, as the encoder gives them: the kernel depends on their scale. Source:
    arXiv 1801.01401 ("KID"), over all pairs instead of subsets.
    """
    _pair(a, b)
    n, m = len(a), len(b)
    same_a = _kernel_sum(a, a) - float(_diagonal(a).sum())
    same_b = _kernel_sum(b, b) - float(_diagonal(b).sum())
    return same_a / (n * (n - 1)) + same_b / (m * (m - 1)) - 2 * _kernel_sum(a, b) / (n * m)


def kernel_estimate(
    a: Tensor, b: Tensor, *, seed: int = 0, most: int = 2000, repeats: int = 1000, level: float = 0.95
) -> Estimate:
    """The kernel distance with an interval from resampling both sets; pairs of one picture with itself stay out.

    The width is that of at most `most` random pictures of each set, whose kernels are held in memory, and so on the
    wide side for larger ones.
    """
    value, generator = kernel_distance(a, b), torch.Generator().manual_seed(seed)
    a, b = (x[torch.randperm(len(x), generator=generator)[:most]] for x in (a, b))
    n, m = len(a), len(b)
    wa, wb = draws(n, repeats, seed), draws(m, repeats, seed + 1)
    inside = _same(_kernel(a, a), wa) + _same(_kernel(b, b), wb)
    across = ((wa @ _kernel(a, b)) * wb).sum(1) / (n * m)
    found = inside - 2 * across
    shift = value - kernel_distance(a, b)
    low, high = percentile(found, level)
    return Estimate(value, low + shift, high + shift)


def _same(kernel: Tensor, weights: Tensor) -> Tensor:
    """Mean over pairs of different pictures, under weights `r n`."""
    kernel = kernel - kernel.diagonal().diag()
    pairs = weights.sum(1).square() - weights.square().sum(1)
    return ((weights @ kernel) * weights).sum(1) / pairs


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double().T / a.shape[1] + 1) ** 3


def _diagonal(a: Tensor) -> Tensor:
    return (a.double().square().sum(1) / a.shape[1] + 1) ** 3


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    return float(sum(_kernel(part, other).sum() for part in a.split(ROWS) for other in b.split(ROWS)))


def precision_recall(a: Tensor, b: Tensor, *, neighbours: int = 3) -> tuple[float, float]:
    """Share of a among b, and of b among a (arXiv 1904.06991): a the generated pictures, b the reference, `b f`.

    A picture is among a set if it is no further from one of it than that one's own `neighbours`-th neighbour.
    """
    _pair(a, b)
    if not is_whole(neighbours, 1):
        raise ValueError(f"neighbours are {neighbours!r}; give a whole number of at least 1")
    if min(len(a), len(b)) <= neighbours:
        raise ValueError(
            f"{min(len(a), len(b))} pictures have no {neighbours}-th neighbour; give more, or ask for less"
        )
    return _share(a, b, neighbours), _share(b, a, neighbours)


def _share(a: Tensor, b: Tensor, neighbours: int) -> float:
    a, b = a.double(), b.double()
    parts = [torch.cdist(part, b).kthvalue(neighbours + 1, 1).values for part in b.split(ROWS)]  # the nearest is itself
    radii = torch.cat(parts)
    return float(torch.cat([(torch.cdist(part, b) <= radii).any(1) for part in a.split(ROWS)]).double().mean())


def _pair(a: Tensor, b: Tensor) -> None:
    check(a)
    check(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of width {a.shape[1]} and {b.shape[1]}; use the same encoder for both sets")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} pictures; give at least 2 of each")
