"""Sparse autoencoders on vectors whose directions are known: every vector is a sum of few of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from krea_data.sae.model import SparseAutoencoder, encode_all, load, save
from krea_data.sae.names import dominant, name_features
from krea_data.sae.sparse import Sparse
from krea_data.sae.training import Config, Fitted, train

FEATURES, DIRECTIONS, ROWS = 32, 24, 3000
CONFIG = Config(latents=48, k=3, steps=800, batch=256, learning_rate=4e-3, dead_after=4000)


def planted(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, the directions in them, and how much of each direction every vector has."""
    draw = np.random.default_rng(7)
    directions = draw.normal(size=(DIRECTIONS, FEATURES))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    amounts = np.zeros((rows, DIRECTIONS))
    for row in range(rows):
        amounts[row, draw.choice(DIRECTIONS, 3, replace=False)] = draw.uniform(1, 2, 3)
    return (amounts @ directions + 5).astype(np.float32), directions, amounts


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return train(planted()[0], CONFIG)


def test_planted_directions_are_found(fitted: Fitted) -> None:
    _, directions, _ = planted()
    likeness = directions @ fitted.model.decoder.detach().numpy().T
    assert np.mean(likeness.max(axis=1) > 0.9) > 0.9
    assert fitted.explained > 0.85
    assert fitted.active == pytest.approx(CONFIG.k, rel=0.35)
    torch.testing.assert_close(fitted.model.decoder.norm(dim=1), torch.ones(CONFIG.latents))


def test_each_vector_is_encoded_by_itself(fitted: Fitted) -> None:
    vectors = planted()[0][:50]
    together = encode_all(fitted.model, vectors)
    alone = [encode_all(fitted.model, vectors[n : n + 1]).row(0) for n in range(50)]
    for number, (latents, values) in enumerate(alone):
        assert together.row(number)[0].tolist() == latents.tolist()
        np.testing.assert_allclose(together.row(number)[1], values, rtol=1e-5)
    dense = fitted.model(torch.from_numpy(vectors)).detach().numpy()
    for number in range(50):
        latents, values = together.row(number)
        assert set(latents.tolist()) == set(np.flatnonzero(dense[number]).tolist())
        assert list(values) == sorted(values, reverse=True)


def test_a_batch_keeps_its_strongest() -> None:
    model = SparseAutoencoder(4, 6, 2)
    found = torch.tensor([[9.0, 8, 7, 0, 0, 0], [1, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    kept = model.strongest(found)
    assert kept.tolist() == found.tolist()  # 6 are allowed and 5 are there
    kept = SparseAutoencoder(4, 6, 1).strongest(found)
    assert kept.tolist() == [[9.0, 8, 7, 0, 0, 0], [0] * 6, [0] * 6]  # a rich vector may have more than k


def test_dead_latents_are_revived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the auxiliary loss reaches a latent that is behind all vectors."""
    start = SparseAutoencoder.start

    def half_dead(self: SparseAutoencoder, vectors: torch.Tensor, generator: torch.Generator) -> None:
        start(self, vectors, generator)
        self.bias.data[8:] = -6.0

    monkeypatch.setattr(SparseAutoencoder, "start", half_dead)

    def fit(auxiliary: float) -> Fitted:
        steps = {"latents": 48, "k": 3, "steps": 600, "batch": 256, "learning_rate": 4e-3, "dead_after": 2000}
        return train(planted()[0], Config(**steps, auxiliary=auxiliary))

    alone, helped = fit(0.0), fit(1 / 8)
    assert alone.dead > 0.8
    assert helped.dead < 0.5
    assert helped.explained > alone.explained + 0.02


def test_prefixes_rebuild_by_themselves() -> None:
    vectors = planted()[0]

    def explained(prefixes: tuple[int, ...]) -> float:
        config = Config(latents=48, k=3, steps=600, batch=256, learning_rate=4e-3, prefixes=prefixes)
        model = train(vectors, config).model
        scaled = model.scaled(torch.from_numpy(vectors))
        kept = model(torch.from_numpy(vectors))[:, :8] @ model.decoder[:8]
        return 1 - float(((scaled - kept).pow(2).sum() / scaled.pow(2).sum()).detach())

    assert explained((8, 24)) > 1.3 * explained(())


def test_a_stopped_run_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = planted(500)[0]
    config = Config(latents=32, k=2, steps=60, batch=64, dead_after=500)
    whole = train(vectors, config)
    monkeypatch.setattr("krea_data.sae.training._EVERY", 20)

    def stop(step: int, _: float) -> None:
        if step == 47:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(vectors, config, checkpoint=checkpoint, on_step=stop)
    steps: list[int] = []
    again = train(vectors, config, checkpoint=checkpoint, on_step=lambda step, _: steps.append(step))
    assert steps[0] == 41
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="checkpoint of another run"):
        train(vectors, Config(latents=32, k=2, steps=61, batch=64), checkpoint=checkpoint)


def test_a_model_comes_back(fitted: Fitted, tmp_path: Path) -> None:
    save(fitted.model, tmp_path / "sae.safetensors", {"encoder": "planted"})
    model = load(tmp_path / "sae.safetensors")
    assert model.k == CONFIG.k
    vectors = torch.from_numpy(planted()[0][:9])
    assert torch.equal(model(vectors), fitted.model(vectors))


def test_features_are_named_by_what_their_pictures_share(fitted: Fitted) -> None:
    vectors, _, amounts = planted()
    labels = [["picture", *(f"d{n}" for n in np.flatnonzero(row))] for row in amounts]
    found = encode_all(fitted.model, vectors)
    features = name_features(found, labels)
    named = {feature.name for feature in features if feature.name}
    assert len({name for name in named if "," not in name} & {f"d{n}" for n in range(DIRECTIONS)}) > 0.9 * DIRECTIONS
    assert all("picture" not in name for name in named), "what all pictures have says nothing"
    right = total = 0
    for row in range(200):
        tags = [name for name, _ in dominant(found, features, row, most=3)]
        right += len(set(tags) & set(labels[row]))
        total += len(tags)
    assert right / total > 0.9
    looked: list[Sequence[int]] = []
    shown = name_features(found, labels, namer=lambda rows, words: looked.append(rows) or f"seen {len(words)}")
    assert all(feature.name.startswith("seen") for feature in shown)
    assert looked[0] == shown[0].top


def test_rows_without_activations_and_names_are_fine() -> None:
    found = Sparse.of([(np.array([1]), np.array([3]), np.array([0.5]))], rows=3, width=4)
    assert [found.row(n)[0].tolist() for n in range(3)] == [[], [3], []]
    (feature,) = name_features(found, [["a"], ["b"], ["c"]])
    assert (feature.latent, feature.name, feature.top) == (3, "", (1,))
    assert dominant(found, [feature], 1) == []
    assert name_features(Sparse.of([], rows=2, width=4), [[], []]) == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SparseAutoencoder(4, 8, 9), "k 9 is not between 1 and the 8 latents"),
        (lambda: Config(steps=0), "at least 1"),
        (lambda: Config(latents=8, k=2, prefixes=(4, 2)), "must rise"),
        (lambda: Config(latents=8, k=2, prefixes=(8,)), "must rise"),
        (lambda: train(np.zeros(4), Config()), "one row for each picture"),
        (lambda: train(np.full((4, 4), np.nan), Config()), "finite"),
        (lambda: name_features(Sparse.of([], 2, 4), []), "2 rows have activations and 0 have labels"),
    ],
)
def test_bad_input_is_named(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no sparse autoencoder"):
        load(tmp_path / "x.safetensors")
