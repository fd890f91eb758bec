"""A head on vectors whose classes overlap by a known amount."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from krea_data.classify.files import load, save
from krea_data.classify.folds import folds
from krea_data.classify.head import Config, Head, train
from krea_data.classify.limits import Limits
from krea_data.classify.measures import calibration_error, roc_auc

FEATURES = 24


def made(rows: int, seed: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of which the first three features tell something; scales differ much."""
    draw = np.random.default_rng(seed)
    y = draw.random(rows) < 0.3
    x = draw.normal(size=(rows, FEATURES))
    x[:, :3] += apart * y[:, None]
    return (x * np.logspace(-2, 2, FEATURES) + 7).astype(np.float32), y


@pytest.fixture(scope="module")
def head() -> Head:
    x, y = made(900, 1)
    return train(x, y, name="test", embedder="e/1", labels={"source": "made"})


def test_figures_of_the_card_hold_on_new_rows(head: Head) -> None:
    """They are of held-out rows, so a fresh sample gives nearly the same."""
    x, y = made(4000, 2)
    scores, card = head(x), head.card
    assert card["roc_auc"] == pytest.approx(roc_auc(scores, y), abs=0.03)
    assert card["operating_point"]["recall"] >= 0.95
    assert (scores[y] >= head.limits.unsure).mean() == pytest.approx(0.95, abs=0.04)
    assert (scores[~y] >= head.limits.yes).mean() < 0.03
    assert calibration_error(scores, y) < 0.06
    assert (card["yes"], card["no"]) == (int(made(900, 1)[1].sum()), int((~made(900, 1)[1]).sum()))


def test_scores_are_not_calibrated_on_what_they_were_trained_on() -> None:
    """With more features than rows every training row is told apart; an honest card must not boast of it."""
    draw = np.random.default_rng(4)
    x, y = draw.normal(size=(80, 300)), np.arange(80) % 2 == 0
    found = train(x, y, name="noise", embedder="e/1", config=Config(penalty=0.01))
    assert found.card["roc_auc"] < 0.75
    assert found.card["unsure"] > 0.5
    assert np.ptp(found(draw.normal(size=(200, 300)))) < 0.5, "scores of new rows say that it does not know"


def test_the_answer_to_a_row_does_not_depend_on_its_neighbours(head: Head) -> None:
    x, _ = made(50, 5)
    alone = np.concatenate([head(x[n : n + 1]) for n in range(50)])
    assert np.array_equal(alone, head(x))


def test_the_same_seed_makes_the_same_head_and_other_labels_another(head: Head) -> None:
    x, y = made(900, 1)
    again = train(x, y, name="test", embedder="e/1", labels={"source": "made"})
    assert again.version == head.version
    assert again.limits == head.limits
    changed = y.copy()
    changed[0] = not changed[0]
    others = [
        train(x, changed, name="test", embedder="e/1", labels={"source": "made"}),
        train(x, y, name="test", embedder="e/1", labels={"source": "another"}),
        train(x, y, name="test", embedder="e/2", labels={"source": "made"}),
        train(x, y, name="test", embedder="e/1", labels={"source": "made"}, config=Config(penalty=2.0)),
        train(x, y, name="test", embedder="e/1", labels={"source": "made"}, config=Config(balance=False)),
    ]
    assert len({head.version, *(other.version for other in others)}) == 6


def test_a_head_comes_back(head: Head, tmp_path: Path) -> None:
    save(head, tmp_path / "head.safetensors")
    again = load(tmp_path / "head.safetensors")
    x, _ = made(20, 6)
    assert np.array_equal(again(x), head(x))
    assert (again.version, again.limits, again.card) == (head.version, head.limits, head.card)
    assert [path.name for path in tmp_path.iterdir()] == ["head.safetensors"]


def test_changed_and_foreign_files_are_named(head: Head, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "head.safetensors"
    save(head, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="it was changed"):
        load(path)
    path.write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load(path)
    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"holds \['x'\] and no head"):
        load(path)


def test_groups_are_held_out_together() -> None:
    groups = [n // 3 for n in range(90)]
    y = np.array([group % 3 == 0 for group in groups])
    found = folds(y, 5, 1, groups)
    assert all(len(set(found[np.array(groups) == group])) == 1 for group in set(groups))
    assert np.bincount(found).tolist() == [18] * 5
    assert np.bincount(found[y], minlength=5).tolist() == [6] * 5
    assert not np.array_equal(found, folds(y, 5, 2, groups))


def test_copies_of_a_picture_do_not_flatter_the_card() -> None:
    """Five copies of each of 40 random vectors: learned by heart unless copies are held out together."""
    draw = np.random.default_rng(8)
    x, y, groups = (
        np.repeat(draw.normal(size=(40, 60)), 5, axis=0),
        np.repeat(np.arange(40) % 2 == 0, 5),
        np.arange(200) // 5,
    )
    apart, together = (train(x, y, name="t", embedder="e", groups=names) for names in (None, groups.tolist()))
    assert apart.card["roc_auc"] > 0.95
    assert together.card["roc_auc"] < 0.75


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Config(folds=1), "folds 1 is below 2"),
        (lambda: train(np.zeros((4, 2)), [True] * 3, name="t", embedder="e"), "for 3 targets"),
        (lambda: train(np.zeros((9, 2)), [True] * 8 + [False], name="t", embedder="e"), "1 groups with the answer no"),
        (lambda: folds(np.zeros(4, dtype=bool), 2, 0, ["a"]), "1 groups for 4 rows"),
    ],
)
def test_bad_input_is_named(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]


def test_vectors_of_another_width_are_refused(head: Head) -> None:
    with pytest.raises(ValueError, match="which wants 24"):
        head(np.zeros((2, 3)))
    assert replace(head, limits=Limits(0.1, 0.2)) != head
    assert head.with_limits(Limits(0.1, 0.2)).version == head.version
