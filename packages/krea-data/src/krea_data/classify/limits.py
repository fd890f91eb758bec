"""Two limits on a score: below the lower one the answer is "no", from the upper one on "yes", between them "unsure"."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answer", "Limits", "limits_for"]

Answer = Literal["yes", "no", "unsure"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Scores below `unsure` are "no", those of `yes` and above "yes"."""

    unsure: float
    yes: float

    def __post_init__(self) -> None:
        if not self.unsure <= self.yes or not math.isfinite(self.yes) or not math.isfinite(self.unsure):
            raise ValueError(f"limits {self.unsure} and {self.yes} must be numbers, the one for yes not the lower one")

    def answer(self, score: float) -> Answer:
        """What a score means."""
        if score >= self.yes:
            return "yes"
        return "unsure" if score >= self.unsure else "no"

    def answers(self, scores: Iterable[float]) -> list[Answer]:
        """What each score means."""
        return [self.answer(float(score)) for score in scores]


def limits_for(
    scores: NDArray[np.floating], targets: NDArray[np.bool_], *, recall: float = 0.95, false_alarms: float = 0.01
) -> Limits:
    """Limits from scores of rows that were held out.

    The lower limit, the operating point, is the highest at which at least `recall` of the positives lie above it; the
    upper one the lowest at which at most `false_alarms` of the negatives do. Where the classes lie so far apart that
    the second would be below the first, both are the operating point. ValueError without positives and negatives.
    """
    if not 0 < recall <= 1 or not 0 <= false_alarms < 1:
        raise ValueError(f"recall {recall} and false_alarms {false_alarms} are shares; try 0.95 and 0.01")
    found, true = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    positives, negatives = np.sort(found[true])[::-1], np.sort(found[~true])[::-1]
    if not len(positives) or not len(negatives):
        raise ValueError(f"{len(positives)} positives and {len(negatives)} negatives: limits need some of both")
    operating = positives[math.ceil(recall * len(positives)) - 1]
    allowed = math.floor(false_alarms * len(negatives) + 1e-9)
    highest = negatives[min(allowed, len(negatives) - 1)]
    return Limits(float(operating), float(max(operating, np.nextafter(highest, np.inf))))
