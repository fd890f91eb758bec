"""Where the limit of agreement lies: captions are given to other pictures, and the limit catches most of these."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krea_data.captions.agreement import Said, Scorer, evidence_for

__all__ = ["Calibration", "Judged", "calibrate"]

_STEP = 0.0001  # scores are rounded to this


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The caption of one row that is judged, and everything that is said of the row."""

    caption: Said
    said: Sequence[Said]

    @property
    def evidence(self) -> list[Said]:
        """What is held against the caption."""
        return evidence_for(self.caption.origin, self.said)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A limit, the share of swapped captions below it, and the share of the rows' own captions that it marks too.

    A caption fails below the limit. Where many of the rows' own captions are marked, the evidence cannot tell a wrong
    caption from a right one: take a better encoder, or ask for a smaller share.
    """

    limit: float
    caught: float
    marked: float
    swapped: int
    own: int


def calibrate(
    rows: Sequence[Judged], scorer: Scorer, *, share: float = 0.95, draws: int = 4, seed: int = 0
) -> Calibration:
    """The smallest limit that catches at least `share` of captions that were given to other pictures.

    Each row with evidence gets `draws` captions of rows with other evidence. ValueError if there are none.
    """
    if not 0 < share < 1:
        raise ValueError(f"share {share} is not between 0 and 1; 0.95 catches 19 of 20 captions of other pictures")
    judged = [row for row in rows if row.evidence]
    own = [score for row in judged if (score := scorer(row.caption.text, row.evidence)[0]) is not None]
    swapped = _swapped(judged, scorer, draws, seed)
    if not swapped:
        raise ValueError(f"of {len(rows)} rows no two have captions and different evidence; give more rows")
    last = swapped[math.ceil(share * len(swapped)) - 1]
    limit = round(last + _STEP, 4)
    return Calibration(
        limit=limit,
        caught=sum(score < limit for score in swapped) / len(swapped),
        marked=sum(score < limit for score in own) / len(own),
        swapped=len(swapped),
        own=len(own),
    )


def _swapped(rows: Sequence[Judged], scorer: Scorer, draws: int, seed: int) -> list[float]:
    """The scores of captions against the evidence of other rows, in rising order."""
    found: list[float] = []
    keys = [tuple((one.origin, one.text) for one in row.evidence) for row in rows]
    for place, row in enumerate(rows):
        order = np.random.default_rng([seed, place]).permutation(len(rows)).tolist()
        others = [rows[other] for other in order if keys[other] != keys[place]][:draws]
        for other in others:
            score = scorer(other.caption.text, row.evidence)[0]
            found += [score] if score is not None else []
    return sorted(found)
