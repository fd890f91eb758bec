"""Captions that fail: those that disagree with the label, the text in the picture, and other captions of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from krea_data.captions.agreement import Encoder, Scorer, by_form, said_of, weights_of
from krea_data.captions.calibration import Calibration, Judged, calibrate
from krea_data.captions.overlap import Weights
from krea_data.rows import Result, Row

__all__ = ["Agreement", "calibrated"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Writes how well a row's captions agree with what other sources say, and marks the caption that fails.

    Judged is the caption of the first of `described`, and where that has none the row's long one. `score` is its
    agreement, `against` the same by origin, `by` that of each caption; `fails` is true below `limit`. Where there is
    nothing to compare with, there is no score, and nothing fails. It drops nothing unless `drop`: then "caption fails".
    Weights and limit come from `calibrated`.
    """

    weights: Weights
    limit: float
    encoder: Encoder | None = None
    drop: bool = False
    name: str = "agreement"
    after: tuple[str, ...] = ("caption",)
    task: str = "caption"
    described: tuple[str, ...] = ("describe",)
    ocr: str = "ocr"
    columns: ClassVar[dict[str, type]] = {"score": float, "fails": bool, "worst": str}
    indexed: ClassVar[tuple[str, ...]] = ("score",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tasks whose results it needs."""
        return (self.task, self.ocr, *self.described)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        return [self._compare(row) for row in rows]

    @property
    def scorer(self) -> Scorer:
        """How two texts are compared."""
        return Scorer(weights=self.weights, encoder=self.encoder)

    def judged(self, row: Row) -> Judged | None:
        """The caption of a row that is judged, with all that is said of it; None where it has none."""
        said = said_of(row, task=self.task, described=self.described, ocr=self.ocr)
        chosen = [one for one in said if one.origin == self.described[0] and not one.form] if self.described else []
        chosen = chosen or [one for one in said if one.form == "long"]
        return Judged(caption=chosen[0], said=said) if chosen else None

    def _compare(self, row: Row) -> Result:
        judged = self.judged(row)
        if judged is None:
            return Result(value={"fails": False, "by": {}})
        score, against = self.scorer(judged.caption.text, judged.evidence)
        fails = score is not None and score < self.limit
        value: dict[str, Any] = {"score": score, "fails": fails, "limit": self.limit, "against": against}
        value["by"] = dict(by_form(judged.said, self.scorer))
        value["worst"] = min(against, key=lambda origin: against[origin]) if against else None
        return Result(value=value, drop="caption fails" if fails and self.drop else None)


def calibrated(
    rows: Iterable[Row],
    *,
    share: float = 0.95,
    seed: int = 0,
    encoder: Encoder | None = None,
    **names: Any,
) -> tuple[Agreement, Calibration]:
    """The task with weights and limit from these rows: captions given to other pictures fail in `share` of all cases.

    `names` are further settings of the task. Some thousand rows are enough. ValueError if there is nothing to compare.
    """
    seen = list(rows)
    task = Agreement(weights=Weights(known={}, unseen=1.0), limit=0.0, encoder=encoder, **names)
    weights = weights_of(seen, task=task.task, described=task.described, ocr=task.ocr)
    task = replace(task, weights=weights)
    judged = [one for row in seen if (one := task.judged(row)) is not None]
    found = calibrate(judged, task.scorer, share=share, seed=seed)
    return replace(task, limit=found.limit), found
