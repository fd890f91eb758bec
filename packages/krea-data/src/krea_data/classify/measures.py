"""How good scores are: calibration error, the area under the ROC curve, precision and recall at a limit."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["calibration_error", "precision_recall", "roc_auc"]


def roc_auc(scores: NDArray[np.floating], targets: NDArray[np.bool_]) -> float:
    """The chance that a positive scores above a negative, ties counted half; 0.5 says nothing. NaN without both."""
    targets = np.asarray(targets, dtype=bool)
    positives, negatives = int(targets.sum()), int((~targets).sum())
    if not positives or not negatives:
        return float("nan")
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = ranks[places.ravel()][targets].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def calibration_error(scores: NDArray[np.floating], targets: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error: how far scores lie from the share of positives, over bins of equal width."""
    if len(scores) == 0:
        return float("nan")
    found, true = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    places = np.clip((found * bins).astype(np.int64), 0, bins - 1)
    gaps = np.bincount(places, found - true, minlength=bins)
    return float(np.abs(gaps).sum() / len(found))


def precision_recall(scores: NDArray[np.floating], targets: NDArray[np.bool_], limit: float) -> tuple[float, float]:
    """Of the rows at `limit` or above, the share that is positive; of the positives, the share that is there."""
    said, true = np.asarray(scores) >= limit, np.asarray(targets, dtype=bool)
    right = int((said & true).sum())
    return right / max(1, int(said.sum())), right / max(1, int(true.sum()))
