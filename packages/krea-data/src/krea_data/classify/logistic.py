"""Logistic regression with an L2 penalty, solved by Newton's method: few numbers of features, exact and repeatable."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["balanced", "fit_logistic", "logits", "sigmoid"]

_STEPS = 100
_DONE = 1e-9  # of the gradient, for each unit of weight


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of log odds."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def logits(features: NDArray[np.floating], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log odds of rows `n features`; the last of the weights is the intercept."""
    return np.asarray(features, dtype=np.float64) @ weights[:-1] + weights[-1]


def balanced(targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A weight for every row, so that both classes weigh the same and all rows together their number."""
    positives = int(targets.sum())
    return np.where(
        targets, len(targets) / (2 * max(1, positives)), len(targets) / (2 * max(1, len(targets) - positives))
    )


def fit_logistic(
    features: NDArray[np.floating],
    targets: NDArray[np.floating] | NDArray[np.bool_],
    *,
    penalty: float,
    row_weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """The weights, then the intercept, that minimise the weighted loss plus penalty / 2 times the squared weights.

    The intercept is not penalised. `penalty` is scikit-learn's 1 / C; `targets` are 0 to 1. ValueError if there is
    nothing to tell apart or a number is not finite.
    """
    x = np.hstack([np.asarray(features, dtype=np.float64), np.ones((len(features), 1))])
    y = np.asarray(targets, dtype=np.float64)
    share = np.ones(len(y)) if row_weights is None else np.asarray(row_weights, dtype=np.float64)
    _check(x, y, share, penalty)
    ridge = np.full(x.shape[1], penalty)
    ridge[-1] = 0.0
    weights = np.zeros(x.shape[1])
    loss = _loss(x, y, share, ridge, weights)
    for _ in range(_STEPS):
        found = sigmoid(x @ weights)
        slope = x.T @ (share * (found - y)) + ridge * weights
        if np.abs(slope).max() <= _DONE * share.sum():
            break
        bend = (x * (share * found * (1 - found))[:, None]).T @ x
        bend[np.diag_indices_from(bend)] += ridge + 1e-12
        weights, better = _shorter(x, y, share, ridge, weights, np.linalg.solve(bend, slope), loss)
        if better >= loss:
            break
        loss = better
    return weights


def _shorter(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    share: NDArray[np.float64],
    ridge: NDArray[np.float64],
    weights: NDArray[np.float64],
    step: NDArray[np.floating],
    loss: float,
) -> tuple[NDArray[np.float64], float]:
    """Newton's step, halved until it helps: far from the minimum a whole one may jump over it."""
    for halvings in range(40):
        tried = weights - step / 2**halvings
        found = _loss(x, y, share, ridge, tried)
        if found < loss:
            return tried, found
    return weights, loss


def _loss(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    share: NDArray[np.float64],
    ridge: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> float:
    odds = x @ weights
    return float(share @ (np.logaddexp(0.0, odds) - y * odds) + 0.5 * (ridge * weights) @ weights)


def _check(x: NDArray[np.float64], y: NDArray[np.float64], share: NDArray[np.float64], penalty: float) -> None:
    if not penalty > 0:
        raise ValueError(f"penalty {penalty} is not above 0; 1 is usual, more keeps the weights smaller")
    if not len(x) == len(y) == len(share):
        raise ValueError(f"{len(x)} rows, {len(y)} targets and {len(share)} weights do not belong together")
    if not (np.isfinite(x).all() and np.isfinite(share).all() and (share >= 0).all()):
        raise ValueError("features and weights must be finite numbers, weights not below 0")
    if not ((y >= 0) & (y <= 1)).all() or len(y) == 0 or np.ptp(y) == 0:
        raise ValueError("targets must be 0 to 1 and not all the same; a head needs examples of both answers")
