"""A few pictures stand for a board, each with its share."""

import pytest
import torch
from krea_style.moodboard import medoids, moodboard
from krea_style.testing import FakeStyleEncoder, look, mask, paint


def board(*kinds: int) -> list[torch.Tensor]:
    return [paint(mask(i), look(kind)) for i, kind in enumerate(kinds)]


def test_each_style_is_represented_with_its_share() -> None:
    found = moodboard(board(0, 0, 0, 1, 1, 0), FakeStyleEncoder(8), strength=0.6, most=2)
    assert found.counts == (2,)
    assert sorted(found.scales) == pytest.approx([0.2, 0.4])
    assert len(found.tokens) == 2


def test_order_does_not_matter() -> None:
    pictures = board(0, 1, 2, 0, 1, 2, 0, 1, 2, 3)
    forward = moodboard(pictures, FakeStyleEncoder(8), most=3)
    backward = moodboard(pictures[::-1], FakeStyleEncoder(8), most=3)
    assert forward.scales == pytest.approx(backward.scales)
    torch.testing.assert_close(forward.tokens, backward.tokens)


def test_strength_is_that_of_the_whole_board() -> None:
    assert sum(moodboard(board(*range(12)), FakeStyleEncoder(8)).scales) == pytest.approx(0.35)


def test_equal_pictures_are_one_reference() -> None:
    picture = paint(mask(0), look(0))
    assert moodboard([picture] * 5, FakeStyleEncoder(8), most=3).scales == pytest.approx((0.35,))


def test_medoids_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [10.5]])
    assert medoids(points, 1) == ([2], [1.0])
    chosen, shares = medoids(points, 2)
    assert chosen == [2, 3]
    assert shares == [0.6, 0.4]


def test_what_is_no_board() -> None:
    with pytest.raises(ValueError, match=r"outside -0\.5 to 1\.5"):
        moodboard(board(0), FakeStyleEncoder(8), strength=1.6)
    with pytest.raises(ValueError, match="0 pictures"):
        moodboard([], FakeStyleEncoder(8))
    with pytest.raises(ValueError, match="one single colour"):
        moodboard([torch.zeros(3, 16, 16)], FakeStyleEncoder(8))
