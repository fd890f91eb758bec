from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_data.balance.caps import capped, chances, draw
from krea_data.balance.mix import Mix, mixed
from krea_data.balance.review import groups
from krea_data.sample import choose

CONCEPTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.lists(st.sampled_from("xyz"), max_size=3))


def blobs(counts: list[int], noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around random directions, and which one each is around."""
    draws = np.random.default_rng(0)
    directions = draws.normal(size=(len(counts), 16))
    kinds = np.repeat(np.arange(len(counts)), counts)
    return (directions[kinds] + noise * draws.normal(size=(len(kinds), 16))).astype(np.float32), kinds


def test_clusters_are_the_groups_that_there_are() -> None:
    pytest.importorskip("faiss")
    from krea_data.balance.clusters import cluster

    vectors, kinds = blobs([400, 30, 30, 30, 30, 30])
    tree = cluster(vectors, (6, 2))
    fine, coarse = tree.members
    pairs = Counter(zip(fine.tolist(), kinds.tolist(), strict=True))
    assert len(pairs) == 6, "one cluster for each group, however crowded one of them is"
    assert len({(f, c) for f, c in zip(fine.tolist(), coarse.tolist(), strict=True)}) == 6
    again = cluster(vectors, (6, 2))
    assert all((a == b).all() for a, b in zip(tree.members, again.members, strict=True))
    same = tree.assign(vectors)
    assert all((a == b).all() for a, b in zip(tree.members, same.members, strict=True))
    ids = [f"row {n}" for n in range(len(vectors))]
    chosen = choose(dict(zip(ids, tree.paths(), strict=True)), 60)
    per_kind = Counter(kinds[int(one.split()[1])] for one in chosen)
    assert max(per_kind.values()) <= 15 < 400 * 60 / 550, "the crowded group is capped"
    assert min(per_kind[kind] for kind in range(6)) >= 5


@pytest.mark.parametrize("sizes", [(), (2, 4), (600, 2), (5, 5), (4, 0)])
def test_bad_levels_are_named(sizes: tuple[int, ...]) -> None:
    pytest.importorskip("faiss")
    from krea_data.balance.clusters import cluster

    with pytest.raises(ValueError, match="must fall from level to level"):
        cluster(blobs([100, 100])[0], sizes)


def test_groups_have_names_and_flags() -> None:
    vectors, kinds = blobs([300, 20, 20, 20], noise=0.5)
    vectors[kinds == 1] = vectors[kinds == 1][0]
    names = ["star", "cat", "boat", ""]
    labels = [["drawing", names[kind]] if names[kind] else [f"word {row}"] for row, kind in enumerate(kinds)]
    authors = ["one" if kind == 0 else f"somebody {row % 7}" for row, kind in enumerate(kinds)]
    found = groups(kinds, vectors, labels, authors)
    assert [group.number for group in found] == [0, 1, 2, 3]
    assert [group.name for group in found] == ["", "cat", "boat", ""], "nearly all are stars, so that says nothing"
    flags = {group.number: group.flags for group in found}
    assert "crowded" in flags[0]
    assert "one author" in flags[0]
    assert "uniform" in flags[1]
    assert flags[2] == ()
    assert flags[3] == ("mixed",)
    assert sorted(row for group in found for row in group.rows) == list(range(len(kinds)))
    with pytest.raises(ValueError, match="give all"):
        groups(kinds, vectors[1:], labels)


@given(CONCEPTS, st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_higher_limit_only_adds_rows(concepts: dict[str, list[str]], limit: int, seed: int) -> None:
    fewer, more = capped(concepts, limit, seed=seed), capped(concepts, limit + 1, seed=seed)
    assert fewer.keys() <= more.keys()
    counts = Counter(concept for named in concepts.values() for concept in set(named))
    for one, named in concepts.items():
        if any(counts[concept] <= limit for concept in named) or not named:
            assert one in fewer, "what is rare is kept, and so is what nothing matches"


def test_frequent_concepts_are_thinned_out_to_about_their_limit() -> None:
    concepts = {f"star {n}": ["star"] for n in range(3000)} | {f"axe {n}": ["axe", "star"] for n in range(20)}
    kept = capped(concepts, 200)
    counts = Counter(one.split()[0] for one in kept)
    assert counts["axe"] == 20
    assert 150 < counts["star"] < 250
    assert chances(concepts, 200)["star 1"] == pytest.approx(200 / 3020)
    draws = [draw(one) for one in concepts]
    assert abs(np.mean(draws) - 0.5) < 0.02
    assert 0 <= min(draws) < max(draws) < 1
    with pytest.raises(ValueError, match="at least 1 row"):
        chances(concepts, 0)


def test_a_mix_fills_its_shares_and_says_what_lacks() -> None:
    ids = [f"photo/{n}" for n in range(1000)] + [f"icon/{n}" for n in range(30)] + ["other/1"]
    mix = Mix(shares={"photo": 0.6, "icon": 0.3, "text": 0.1}, rows=333, most=3)
    found = mixed(ids, lambda one: one.split("/")[0], mix)
    assert {name: portion.wanted for name, portion in found.items()} == {"photo": 200, "icon": 100, "text": 33}
    assert found["photo"].missing == 0
    assert set(found["photo"].times.values()) == {1}
    assert set(found["icon"].times.values()) == {3}
    assert found["icon"].missing == 10
    assert found["text"].missing == 33
    assert mixed(ids[::-1], lambda one: one.split("/")[0], mix) == found
    larger = mixed(ids, lambda one: one.split("/")[0], Mix(shares={"photo": 1.0}, rows=400))
    assert found["photo"].times.keys() < larger["photo"].times.keys()


@pytest.mark.parametrize(
    ("shares", "rows", "said"),
    [
        ({"a": 0.5}, 10, "sum to 0.5"),
        ({}, 10, "sum to 0"),
        ({"a": 2.0, "b": -1.0}, 10, "at least 0"),
        ({"a": 1}, 0, "0 rows"),
    ],
)
def test_bad_mixes_are_named(shares: dict[str, float], rows: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Mix(shares=shares, rows=rows)
