from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from krea_data.dedup import Index, Limits, Redraws, explain, propose, repair
from krea_data.dedup.redraws import clusters, column, similar
from krea_data.krablet import Krablet
from krea_data.rows import Result
from krea_data.tasks import Dedup


def families(seed: int = 0) -> np.ndarray:
    """60 directions, and four vectors near each."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(60, 32))
    return np.repeat(centres, 4, axis=0) + draw.normal(size=(240, 32)) * 0.15


def brute(vectors: np.ndarray, limit: float) -> set[tuple[int, int]]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T
    return {(i, j) for i in range(len(unit)) for j in range(i + 1, len(unit)) if near[i, j] >= limit}


def test_in_one_cluster_all_pairs_are_found() -> None:
    vectors = families()
    found = similar(vectors, Redraws(limit=0.9))
    assert set(found) == brute(vectors, 0.9)
    assert found
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert all(abs(similarity - unit[i] @ unit[j]) < 1e-5 for (i, j), similarity in found.items())


def test_made_clusters_part_few_redraws() -> None:
    vectors = families()
    found, all_of = set(similar(vectors, Redraws(limit=0.9, of=40))), brute(vectors, 0.9)
    assert found <= all_of
    assert len(found) > 0.95 * len(all_of)
    groups = clusters(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 40)
    assert groups.shape == (240, 2)
    assert len(np.unique(groups)) == 6


def test_pairs_of_different_clusters_are_not_compared() -> None:
    vectors = np.ones((4, 3))
    assert set(similar(vectors, Redraws(), np.array([0, 0, 1, 1]))) == {(0, 1), (2, 3)}
    assert set(similar(vectors, Redraws(), np.array([[0, 5], [0, 6], [1, 6], [1, 7]]))) == {(0, 1), (1, 2), (2, 3)}


def test_vectors_without_a_direction_are_like_nothing() -> None:
    assert similar(np.array([[0.0, 0.0], [0.0, 0.0], [np.nan, 1.0], [1.0, 1.0]]), Redraws()) == {}


@pytest.mark.parametrize("wrong", [{"limit": 0.0}, {"limit": 1.1}, {"of": 1}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"use 0.95 and 1000"):
        Redraws(**wrong)  # type: ignore[arg-type]


@pytest.mark.postgres
def test_redraws_are_proposed_and_nothing_goes(krablet: Krablet, row: Callable, bare: Callable) -> None:
    rows = [
        row("a/1", 1),
        row("a/2", (1 << 60) - 1),
        row("a/3", (1 << 60) - 1 << 70),
        row("a/4", 1, blob="bytes of a/1"),
    ]
    vectors = {"a/1": [1.0, 0.0], "a/2": [3.0, 0.3], "a/3": [0.0, 1.0], "a/4": [1.0, 0.0]}
    rows = [replace(r, results={**r.results, "embed": Result(value={"vector": vectors[r.id]})}) for r in rows]
    krablet.add(bare(rows))
    index = Index(krablet, {"dedup": Limits()})
    index.take(rows)
    repair(index, "dedup")
    before = Dedup().compare(rows)
    proposed = propose(index, rows, column("embed", "vector"), Redraws(limit=0.98, name="open_nsfw"))
    assert proposed == {("a/1", "a/2"): pytest.approx(1 / np.hypot(1, 0.1), abs=1e-6)}
    assert repair(index, "dedup") == 0
    index.take(rows)
    assert repair(index, "dedup") == 4, "all are due once more"
    assert {one.id: one.results["dedup"] for one in krablet.scan()} == before
    for mine, ids in (("a/2", ("a/1", "a/4")), ("a/4", ("a/2",))):
        (near,) = explain(index, "dedup", mine).near
        assert (near.kind, near.ids, near.rule) == ("redraw", ids, "cosine of open_nsfw >= 0.98")
    assert "redraw: a/2: similarity 0.9950 (cosine of open_nsfw >= 0.98)" in str(explain(index, "dedup", "a/1"))


@pytest.mark.postgres
def test_labels_belong_to_rows_and_missing_embeddings_are_named(krablet: Krablet, row: Callable) -> None:
    index = Index(krablet, {"dedup": Limits()})
    rows = [row("a/1"), row("a/2", blob="bytes of a/1"), row("a/3"), row("a/4")]

    def same(some: object) -> np.ndarray:
        return np.ones((3, 2))

    assert set(propose(index, rows, same, Redraws(), np.array([7, 9, 8, 7]))) == {("a/1", "a/4")}
    with pytest.raises(ValueError, match="row a/1 has no vector of the task embed"):
        propose(index, rows, column("embed", "vector"), Redraws())
