"""A head on frozen embeddings: logistic regression, calibrated on rows that it was not trained on, with its limits."""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krea_data.classify.folds import folds
from krea_data.classify.limits import Limits, limits_for
from krea_data.classify.logistic import balanced, fit_logistic, sigmoid
from krea_data.classify.measures import calibration_error, precision_recall, roc_auc

__all__ = ["Config", "Head", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`penalty` of the weights of standardised features; `recall` and `false_alarms` as in `limits_for`."""

    penalty: float = 1.0
    balance: bool = True  # let both answers weigh the same, however many rows each has
    folds: int = 5
    recall: float = 0.95
    false_alarms: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds {self.folds} is below 2; a head is calibrated on rows it has not seen")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Head:
    """Vectors of one embedder to a calibrated score, 0 to 1. `card` says what it was made of and how good it is."""

    name: str
    embedder: str
    weights: NDArray[np.float32]  # for features as they are: standardisation and calibration are folded in
    bias: float
    limits: Limits
    labels: str = ""  # a hash of the labels that it learned from
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """A hash of weights, embedder and labels: what it answers changes only with it."""
        said = json.dumps([self.name, self.embedder, self.bias.hex(), self.labels])
        return hashlib.sha256(said.encode() + self.weights.astype("<f4").tobytes()).hexdigest()[:16]

    def __call__(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scores of vectors `n features`, each by itself; ValueError if they have another width."""
        if vectors.ndim != 2 or vectors.shape[1] != len(self.weights):
            raise ValueError(
                f"vectors of shape {vectors.shape} do not fit {self.name}, which wants {len(self.weights)}"
            )
        products = np.asarray(vectors, dtype=np.float64) * self.weights.astype(np.float64)
        return sigmoid(products.sum(axis=1) + self.bias)  # not a matrix product: its sums depend on the neighbours

    def with_limits(self, limits: Limits) -> "Head":
        """The same head with other limits."""
        return replace(self, limits=limits)


def train(
    vectors: NDArray[np.floating],
    targets: Sequence[bool] | NDArray[np.bool_],
    *,
    name: str,
    embedder: str,
    config: Config | None = None,
    groups: Sequence[Hashable] | None = None,
    labels: Mapping[str, Any] | None = None,
) -> Head:
    """A head that tells the rows of True from those of False.

    The rows of a group, such as re-encodings of one picture, are held out together. `labels` describes where the
    targets come from, for the card. All figures of the card are of rows that were held out: those of discrimination
    and limits, pooled over the folds, and the calibration error, for which the calibration itself is held out too.
    ValueError where a number is not finite or there are too few rows of an answer.
    """
    config = config or Config()
    x, y = np.asarray(vectors, dtype=np.float64), np.asarray(targets, dtype=bool)
    if x.ndim != 2 or len(x) != len(y):
        raise ValueError(f"vectors of shape {x.shape} for {len(y)} targets; give one row for each")
    place = folds(y, config.folds, config.seed, groups)
    odds = np.empty(len(y))
    for number in range(config.folds):
        weights, bias = _linear(x[place != number], y[place != number], config)
        odds[place == number] = x[place == number] @ weights + bias
    scores = _honest(odds, y, place, config)
    slope, offset = _platt(odds, y)
    weights, bias = _linear(x, y, config)
    limits = limits_for(sigmoid(slope * odds + offset), y, recall=config.recall, false_alarms=config.false_alarms)
    return Head(
        name=name,
        embedder=embedder,
        weights=(slope * weights).astype(np.float32),
        bias=float(slope * bias + offset),
        limits=limits,
        labels=_labels_hash(x, y, labels or {}),
        card=_card(sigmoid(slope * odds + offset), scores, y, limits, config, labels or {}),
    )


def _labels_hash(x: NDArray[np.float64], y: NDArray[np.bool_], labels: Mapping[str, Any]) -> str:
    said = json.dumps(dict(labels), sort_keys=True).encode()
    return hashlib.sha256(said + np.packbits(y).tobytes() + x.astype("<f4").tobytes()).hexdigest()[:16]


def _linear(x: NDArray[np.float64], y: NDArray[np.bool_], config: Config) -> tuple[NDArray[np.float64], float]:
    """Weights and bias for features as they are, learned on standardised ones."""
    middle, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    shares = balanced(y) if config.balance else None
    found = fit_logistic((x - middle) / spread, y, penalty=config.penalty, row_weights=shares)
    weights = found[:-1] / spread
    return weights, float(found[-1] - middle @ weights)


def _platt(odds: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset that make probabilities of log odds (Platt 1999), with his targets that are not quite 0 and 1.

    The slope is kept above 0: a head that is worse than chance on new rows says little, not the opposite.
    """
    positives = int(y.sum())
    smooth = np.where(y, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))
    scale = max(float(odds.std()), 1e-9)
    slope, offset = fit_logistic(odds[:, None] / scale, smooth, penalty=1e-6)
    return max(float(slope) / scale, 1e-6), float(offset)


def _honest(
    odds: NDArray[np.float64], y: NDArray[np.bool_], place: NDArray[np.int64], config: Config
) -> NDArray[np.float64]:
    """Scores of each fold by the calibration of the other folds."""
    scores = np.empty(len(y))
    for number in range(config.folds):
        slope, offset = _platt(odds[place != number], y[place != number])
        scores[place == number] = sigmoid(slope * odds[place == number] + offset)
    return scores


def _card(
    pooled: NDArray[np.float64],
    scores: NDArray[np.float64],
    y: NDArray[np.bool_],
    limits: Limits,
    config: Config,
    labels: Mapping[str, Any],
) -> dict[str, Any]:
    precision, recall = precision_recall(pooled, y, limits.unsure)
    surely, found = precision_recall(pooled, y, limits.yes)
    band = float(((pooled >= limits.unsure) & (pooled < limits.yes)).mean())
    return {
        "yes": int(y.sum()),
        "no": int((~y).sum()),
        "labels": dict(labels),
        "penalty": config.penalty,
        "balanced": config.balance,
        "folds": config.folds,
        "seed": config.seed,
        "roc_auc": round(roc_auc(pooled, y), 4),
        "calibration_error": round(calibration_error(scores, y), 4),
        "operating_point": {"limit": limits.unsure, "precision": round(precision, 4), "recall": round(recall, 4)},
        "yes_limit": {"limit": limits.yes, "precision": round(surely, 4), "recall": round(found, 4)},
        "unsure": round(band, 4),
    }
