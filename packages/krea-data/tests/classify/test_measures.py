import numpy as np
import pytest
from krea_data.classify.limits import Limits, limits_for
from krea_data.classify.measures import calibration_error, precision_recall, roc_auc


def drawn(rows: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores, many of them equal."""
    draw = np.random.default_rng(1)
    scores = np.round(draw.beta(0.7, 0.9, rows), 2)
    return scores, draw.random(rows) < scores


def test_the_area_counts_pairs() -> None:
    scores, targets = drawn(300)
    pairs = scores[targets][:, None] - scores[~targets][None]
    assert roc_auc(scores, targets) == pytest.approx((pairs > 0).mean() + 0.5 * (pairs == 0).mean(), abs=1e-12)
    assert np.isnan(roc_auc(scores, np.ones(300, dtype=bool)))
    metrics = pytest.importorskip("sklearn.metrics")
    assert roc_auc(scores, targets) == pytest.approx(metrics.roc_auc_score(targets, scores), abs=1e-12)


def test_the_calibration_error_is_that_of_the_scores() -> None:
    scores, targets = drawn(20_000)
    assert calibration_error(scores, targets) < 0.02
    assert calibration_error(np.full(100, 0.9), np.arange(100) < 40) == pytest.approx(0.5)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_the_operating_point_is_chosen_by_recall() -> None:
    scores, targets = drawn()
    for recall in (0.5, 0.9, 0.95, 1.0):
        limits = limits_for(scores, targets, recall=recall, false_alarms=0.02)
        assert precision_recall(scores, targets, limits.unsure)[1] >= recall
        above = np.unique(scores[scores > limits.unsure])
        assert not len(above) or precision_recall(scores, targets, above[0])[1] < recall, "a higher limit would do"
        assert (scores[~targets] >= limits.yes).mean() <= 0.02
        assert limits.unsure <= limits.yes
    wide, narrow = (limits_for(scores, targets, false_alarms=share) for share in (0.001, 0.2))
    assert wide.yes > narrow.yes


def test_classes_far_apart_leave_nothing_unsure() -> None:
    scores, targets = np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])
    limits = limits_for(scores, targets)
    assert limits == Limits(0.8, 0.8)
    assert limits.answers(scores) == ["no", "no", "yes", "yes"]


def test_answers_lie_between_limits() -> None:
    assert Limits(0.2, 0.8).answers([0.1, 0.2, 0.5, 0.8, 1.0]) == ["no", "unsure", "unsure", "yes", "yes"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Limits(0.8, 0.2), "limits 0.8 and 0.2"),
        (lambda: Limits(float("nan"), 0.2), "must be numbers"),
        (lambda: limits_for(np.ones(2), np.ones(2, dtype=bool)), "2 positives and 0 negatives"),
        (lambda: limits_for(np.ones(2), np.array([True, False]), recall=0), "recall 0"),
    ],
)
def test_bad_limits_are_named(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
