"""The pool draws what teaches, retires what does not, and comes back to it."""

import pytest
import torch
from krea_rl.prompts import Pool, PromptPool


def rewards(kind: str, seed: int) -> torch.Tensor:
    """A group of 8 scores of a prompt of that kind."""
    noise = torch.rand(8, generator=torch.Generator().manual_seed(seed))
    return {"live": noise, "easy": 0.96 + 0.03 * noise, "hopeless": 0.02 * noise, "flat": torch.full((8,), 0.5)}[kind]


def play(pool: PromptPool, kinds: list[str], updates: int, count: int) -> list[list[int]]:
    drawn = []
    for step in range(updates):
        indices = pool.draw(count)
        pool.record(indices, torch.stack([rewards(kinds[i], 100 * step + i) for i in indices]))
        drawn.append(indices)
    return drawn


KINDS = ["live", "easy", "hopeless", "flat"] * 5
PROMPTS = [f"{kind} {i}" for i, kind in enumerate(KINDS)]


def test_every_prompt_is_seen_and_then_the_useful_ones() -> None:
    pool = PromptPool(PROMPTS, Pool(retest=1000, visits=1))
    drawn = play(pool, KINDS, 40, 4)
    assert {i for step in drawn for i in step} == set(range(20))
    late = [KINDS[i] for step in drawn[20:] for i in step]
    assert late.count("live") / len(late) >= 0.9  # a quarter under uniform drawing
    assert {pool.status(i) for i, kind in enumerate(KINDS) if kind == "live"} == {"active"}
    for i, kind in enumerate(KINDS):
        if kind != "live":
            assert pool.status(i) == kind


def test_a_retired_prompt_is_tested_again_and_can_return() -> None:
    pool = PromptPool(["a", "b"], Pool(retest=5, visits=2))
    kinds = ["easy", "live"]
    play(pool, kinds, 2, 2)
    assert pool.status(0) == "easy"
    assert pool.weights()[0] == 0
    drawn = play(pool, ["live", "live"], 30, 1)
    assert [0] in drawn
    assert pool.status(0) == "active"


def test_weights_follow_the_spread() -> None:
    pool = PromptPool(["wide", "narrow"], Pool(visits=1, power=0.5))
    pool.record([0, 1], torch.tensor([[0.1, 0.9], [0.4, 0.6]]))
    assert pool.weights().tolist() == pytest.approx([1.0, 0.5])
    assert pool.mean.tolist() == pytest.approx([0.5, 0.5])
    assert pool.variance.tolist() == pytest.approx([0.16, 0.01])
    pool.record([1], torch.tensor([[0.1, 0.9]]))
    assert pool.variance[1].item() == pytest.approx(0.7 * 0.01 + 0.3 * 0.16)


def test_a_resumed_pool_draws_the_same() -> None:
    pool = PromptPool(PROMPTS, seed=4)
    play(pool, KINDS, 10, 4)
    resumed = PromptPool(PROMPTS)
    resumed.load_state_dict(pool.state_dict())
    assert play(pool, KINDS, 10, 4) == play(resumed, KINDS, 10, 4)


def test_too_few_useful_prompts_are_filled_up() -> None:
    pool = PromptPool(["a", "b", "c"], Pool(visits=1))
    pool.record([0, 1, 2], torch.stack([rewards("flat", 0)] * 3))
    assert sorted(pool.draw(3)) == [0, 1, 2]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts with 1 distinct"):
        PromptPool(["a", "a"])
    pool = PromptPool(["a", "b"])
    with pytest.raises(ValueError, match="ask for 1 to 2"):
        pool.draw(3)
    with pytest.raises(ValueError, match="expected finite"):
        pool.record([0], torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(ValueError, match="the same prompts"):
        PromptPool(["a", "c"]).load_state_dict(pool.state_dict())
