"""Weights, conditions and what is refused."""

import pytest
import torch
from krea_rl.interfaces import Reward
from krea_rl.rewards.combine import Rewards, Term
from krea_rl.testing import Brightness

IMAGES = torch.stack([torch.full((3, 4, 4), value) for value in (-1.0, 0.0, 1.0)])
PROMPTS = ["dark", "grey", "white"]


def constant(*values: float) -> Reward:
    return lambda prompts, images: torch.tensor(values)[: len(prompts)]


def test_scores_by_name() -> None:
    rewards = Rewards(Term(name="bright", reward=Brightness(), weight=2.0), Term(name="one", reward=constant(1, 1, 1)))
    found = rewards(PROMPTS, IMAGES)
    assert found["bright"].tolist() == [0.0, 0.5, 1.0]
    assert found["one"].tolist() == [1.0, 1.0, 1.0]
    assert rewards.weights == {"bright": 2.0, "one": 1.0}


def test_a_gate_needs_the_hard_reward_first() -> None:
    easy = Term(name="easy", reward=constant(0.9, 0.8, 0.7), gate=("hard", 0.5))
    found = Rewards(easy, Term(name="hard", reward=Brightness()))(PROMPTS, IMAGES)
    assert found["easy"].tolist() == pytest.approx([0.0, 0.8, 0.7])


def test_a_reward_sees_only_prompts_it_applies_to() -> None:
    seen: list[str] = []

    def reward(prompts, images):
        seen.extend(prompts)
        return images.mean((1, 2, 3))

    found = Rewards(Term(name="w", reward=reward, applies=lambda prompt: prompt == "white"))(PROMPTS, IMAGES)
    assert seen == ["white"]
    assert found["w"].tolist() == [0.0, 0.0, 1.0]


def test_a_score_that_is_not_finite_names_reward_and_prompt() -> None:
    rewards = Rewards(Term(name="broken", reward=constant(1.0, float("nan"), 1.0)))
    with pytest.raises(ValueError, match=r"reward 'broken' returned nan for prompt 'grey' \(1 of 3"):
        rewards(PROMPTS, IMAGES)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"returned shape \(2,\) for 3 images"):
        Rewards(Term(name="short", reward=constant(1, 2)))(PROMPTS, IMAGES)
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        Rewards(Term(name="a", reward=Brightness()))(PROMPTS[:2], IMAGES)
    with pytest.raises(ValueError, match="distinct"):
        Rewards(Term(name="a", reward=Brightness()), Term(name="a", reward=Brightness()))
    with pytest.raises(ValueError, match="gated by 'b'"):
        Rewards(Term(name="a", reward=Brightness(), gate=("b", 0.5)))
    with pytest.raises(ValueError, match="must be positive"):
        Term(name="a", reward=Brightness(), weight=0.0)
