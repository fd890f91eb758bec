"""Mixtures: unit length on great circles, ends bit for bit, neighbours from (seed, row), JSON and back."""

import itertools
import json
import math
import random

import numpy as np
import pytest
from krea_sampler.explore import MAX_PROMPTS, Mixture, between, blend, neighbours, slerp

A, B = Mixture.pure("a fox", 3), Mixture.pure("a rocket", 8)


def dense(point: dict[int, float], axes: int) -> np.ndarray:
    return np.array([point.get(axis, 0.0) for axis in range(axes)])


def unit(generator: random.Random, axes: list[int]) -> dict[int, float]:
    raw = [generator.uniform(0.1, 1) for _ in axes]
    return {axis: value / math.hypot(*raw) for axis, value in zip(axes, raw, strict=True)}


@pytest.mark.parametrize("u", [0.0, 0.1, 0.5, 0.73, 1.0])
def test_slerp_is_the_textbook_formula(u: float) -> None:
    generator = random.Random(1)
    for ours, theirs in (([0, 1, 2], [2, 3]), ([0], [1]), ([0, 1], [0, 1, 4])):
        a, b = unit(generator, ours), unit(generator, theirs)
        p, q = dense(a, 5), dense(b, 5)
        angle = np.arccos(p @ q)
        expected = (np.sin((1 - u) * angle) * p + np.sin(u * angle) * q) / np.sin(angle)
        found = dense(slerp(a, b, u), 5)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert abs(np.linalg.norm(found) - 1) < 1e-12


def test_the_ends_of_a_way_are_bit_for_bit() -> None:
    middle = blend(A, B, 0.3)
    for a, b in ((A, B), (middle, B), (A, middle), (middle, neighbours(middle, 0.2, 1, 0)[0])):
        found = between(a, b, 5)
        assert (found[0], found[-1]) == (a, b)
        assert len(set(found)) == 5


def test_half_of_a_half_is_a_quarter() -> None:
    half = blend(blend(A, B, 0.5), A, 0.5)
    quarter = blend(A, B, 0.25)
    assert dict(zip(half.seeds, half.seed_weights, strict=True)) == pytest.approx(
        dict(zip(quarter.seeds, quarter.seed_weights, strict=True)), abs=1e-12
    )
    assert dict(zip(half.prompts, half.prompt_weights, strict=True)) == pytest.approx({"a fox": 0.75, "a rocket": 0.25})


def test_positions_are_equal_angles() -> None:
    way = [dense(dict(zip(m.seeds, m.seed_weights, strict=True)), 9) for m in between(A, B, 7)]
    angles = [math.degrees(math.acos(min(1.0, float(p @ q)))) for p, q in itertools.pairwise(way)]
    assert angles == pytest.approx([15.0] * 6)


def test_neighbours_lie_at_the_distance_in_directions_of_their_own() -> None:
    parent = blend(A, B, 0.4)
    weights = dict(zip(parent.seeds, parent.seed_weights, strict=True))
    found = neighbours(parent, 0.3, 6, seed=5)
    fresh = []
    for one in found:
        of = dict(zip(one.seeds, one.seed_weights, strict=True))
        cosine = sum(of[seed] * weight for seed, weight in weights.items())
        assert math.degrees(math.acos(cosine)) == pytest.approx(27.0)
        assert (one.prompts, one.prompt_weights) == (parent.prompts, parent.prompt_weights)
        fresh += [seed for seed in one.seeds if seed not in weights]
    assert len(set(fresh)) == 6


def test_neighbours_depend_on_seed_and_row_alone() -> None:
    assert neighbours(A, 0.3, 3, seed=5) == neighbours(A, 0.3, 9, seed=5)[:3]
    assert not set(neighbours(A, 0.3, 3, seed=5)) & set(neighbours(A, 0.3, 3, seed=6))


def test_the_farthest_neighbour_has_nothing_of_its_parent() -> None:
    (one,) = neighbours(A, 1.0, 1, seed=0)
    assert one.seed_weights == (1.0,)
    assert one.seeds != A.seeds


def test_a_long_walk_stays_a_mixture() -> None:
    at = A
    for step in range(300):
        at = neighbours(at, 0.4, 1, seed=step)[0]
        assert abs(math.hypot(*at.seed_weights) - 1) < 1e-9
    assert len(at.seeds) < 40  # the first ones have faded, or the list would be of 301


def test_json_and_back_is_the_same() -> None:
    at = blend(neighbours(A, 1 / 3, 1, seed=2**62)[0], Mixture.pure("ein Fuchs", 2**63 - 1), 0.123456789)
    assert Mixture.of(json.loads(json.dumps(at.record()))) == at


def test_the_leading_ones_name_a_mixture() -> None:
    at = blend(A, B, 0.8)
    assert (at.leading_prompt, at.leading_seed) == ("a rocket", 8)
    assert (A.is_pure, at.is_pure) == (True, False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seeds": []}, "0 seeds with 1 weights"),
        ({"seeds": [1, 2]}, "2 seeds with 1 weights"),
        ({"seeds": [-1]}, "between 0 and"),
        ({"seeds": [True]}, "whole number"),
        ({"seeds": [1.0]}, "whole number"),
        ({"seeds": "1"}, "without a list of seeds"),
        ({"seeds": [1, 1], "seed_weights": [0.6, 0.8]}, "named twice"),
        ({"seed_weights": [0.9]}, "sum to 0.81"),
        ({"seed_weights": ["1"]}, "weight of '1'"),
        ({"seed_weights": [float("nan")]}, "above 0"),
        ({"seeds": [1, 2], "seed_weights": [1.0, 0.0]}, "above 0"),
        ({"seeds": list(range(300)), "seed_weights": [300**-0.5] * 300}, "at most 256"),
        ({"prompts": [" "]}, "an empty prompt"),
        ({"prompts": [7]}, "an empty prompt"),
        ({"prompts": ["x" * 5000]}, "at most 4000"),
        ({"prompts": ["a", "b"], "prompt_weights": [0.5, 0.6]}, "sum to 1.1"),
        ({"prompts": [str(i) for i in range(9)], "prompt_weights": [1 / 9] * 9}, f"at most {MAX_PROMPTS}"),
    ],
)
def test_a_wrong_mixture_is_one_sentence(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Mixture.of(A.record() | change)


def test_what_is_no_mixture_is_said() -> None:
    with pytest.raises(ValueError, match="of type list"):
        Mixture.of([1])
    with pytest.raises(ValueError, match="at least 2"):
        between(A, B, 1)
    with pytest.raises(ValueError, match="ask for at least 1"):
        neighbours(A, 0.5, 0, seed=0)
    for distance in (0.0, 1.1, -0.5, math.nan):
        with pytest.raises(ValueError, match="distance"):
            neighbours(A, distance, 1, seed=0)
    for u in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="position"):
            slerp({0: 1.0}, {1: 1.0}, u)
