"""Logistic regression against scikit-learn's on the same problems."""

import numpy as np
import pytest
from krea_data.classify.logistic import balanced, fit_logistic, logits, sigmoid


def problem(rows: int, features: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, features)) * draw.uniform(0.3, 3, features) + draw.normal(size=features)
    odds = x[:, :3] @ [1.0, -2.0, 0.5] + draw.normal(size=rows) - 1
    return x, odds > 0


@pytest.mark.parametrize(("rows", "features"), [(300, 5), (60, 200)])
@pytest.mark.parametrize("penalty", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_equals_scikit_learn(rows: int, features: int, penalty: float, weighted: bool) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = problem(rows, features)
    weights = "balanced" if weighted else None
    theirs = linear.LogisticRegression(C=1 / penalty, class_weight=weights, tol=1e-10, solver="newton-cholesky").fit(
        x, y
    )
    ours = fit_logistic(x, y, penalty=penalty, row_weights=balanced(y) if weighted else None)
    np.testing.assert_allclose(ours[:-1], theirs.coef_[0], atol=1e-4)
    assert ours[-1] == pytest.approx(theirs.intercept_[0], abs=1e-4)
    np.testing.assert_allclose(sigmoid(logits(x, ours)), theirs.predict_proba(x)[:, 1], atol=1e-4)


def test_it_is_at_the_minimum() -> None:
    """The gradient, worked out by hand, is 0 there; also where one feature tells the classes apart."""
    x, y = problem(200, 4)
    x[:, 3] = np.where(y, 5.0, -5.0)
    shares = balanced(y)
    weights = fit_logistic(x, y, penalty=0.1, row_weights=shares)
    left = shares * (sigmoid(logits(x, weights)) - y)
    np.testing.assert_allclose(x.T @ left + 0.1 * weights[:-1], 0, atol=1e-5)
    assert left.sum() == pytest.approx(0, abs=1e-5)
    assert np.all((logits(x, weights) > 0) == y)


def test_classes_weigh_the_same() -> None:
    y = np.arange(100) < 10
    shares = balanced(y)
    assert shares[y].sum() == pytest.approx(shares[~y].sum())
    assert shares.sum() == pytest.approx(100)


@pytest.mark.parametrize(
    ("x", "y", "penalty", "said"),
    [
        (np.zeros((3, 2)), np.ones(3), 1.0, "examples of both answers"),
        (np.zeros((3, 2)), np.array([0.0, 1, 2]), 1.0, "targets must be 0 to 1"),
        (np.zeros((3, 2)), np.array([0.0, 1]), 1.0, "3 rows, 2 targets"),
        (np.full((2, 2), np.nan), np.array([0.0, 1]), 1.0, "finite"),
        (np.zeros((2, 2)), np.array([0.0, 1]), 0.0, "penalty 0.0 is not above 0"),
    ],
)
def test_bad_input_is_named(x: np.ndarray, y: np.ndarray, penalty: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_logistic(x, y, penalty=penalty)
