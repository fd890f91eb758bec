import math
import random

import pytest
from krea_expander.diversity import distances, text_distances


def test_by_hand() -> None:
    assert distances([[1, 0], [0, 2], [3, 0]]) == pytest.approx([0.5, 1.0, 0.5])
    assert distances([[1, 0], [-1, 0]]) == pytest.approx([2.0, 2.0])
    assert distances([[1, 1]]) == [0.0]
    assert distances([]) == []


def test_equal_members_have_no_distance_and_order_does_not_matter() -> None:
    draw = random.Random(1)
    group = [[draw.gauss(0, 1) for _ in range(8)] for _ in range(6)]
    assert distances([group[0]] * 4) == pytest.approx([0.0] * 4, abs=1e-12)
    assert distances(group[::-1]) == pytest.approx(distances(group)[::-1])


def test_scale_does_not_matter() -> None:
    assert distances([[1, 2], [2, -1]]) == pytest.approx(distances([[10, 20], [0.2, -0.1]]))


def test_a_vector_of_zeros_is_far_from_others_and_odd_numbers_are_refused() -> None:
    assert distances([[0, 0], [1, 0]]) == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="not finite"):
        distances([[math.nan, 0], [1, 0]])


def test_texts() -> None:
    same = text_distances(["a red apple", "A red  apple", "a red apple"])
    assert same == pytest.approx([0.0] * 3, abs=1e-12)
    near, far = text_distances(["a red apple", "a red pear"])[0], text_distances(["a red apple", "dusk, waves"])[0]
    assert 0 < near < far <= 1
    assert text_distances(["", ""]) == [0.0, 0.0]
    assert text_distances(["", "abc"]) == [1.0, 1.0]
