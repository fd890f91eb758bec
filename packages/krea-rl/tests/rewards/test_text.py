"""Edit distances by hand, and what counts as asked text."""

import pytest
import torch
from krea_rl.interfaces import Reward
from krea_rl.rewards.text import TextReward, edit_distance, has_text, quoted


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_quoted_text() -> None:
    assert quoted('a sign "OPEN" and \u201cclosed today\u201d, it\'s late') == ["OPEN", "closed today"]
    assert has_text("\u00abMetro\u00bb")
    assert not has_text("a plain 'wall'")


def test_scores() -> None:
    reward: Reward = TextReward(lambda images: ["open  SHOP", "", "Open shot", "x" * 40])
    scores = reward(['a sign "Open Shop"'] * 4, torch.zeros(4, 3, 2, 2))
    assert scores.tolist() == pytest.approx([1.0, 0.0, 1 - 1 / 9, 0.0])


def test_a_prompt_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="quotes no text"):
        TextReward(lambda images: [""])(["a wall"], torch.zeros(1, 3, 2, 2))
