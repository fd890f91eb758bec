import math
import random

import pytest
from krea_expander.diversity import distances
from krea_expander.train import Weights, group_rewards, reward_table

TEXTS = ["a red apple on a table", "a red apple in a bowl of leaves", "a green pear", "Sure! A red apple"]


def test_rewards_by_hand() -> None:
    quality = [0.5, 0.9, 0.7, 1.0]
    vectors = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]
    rewards = group_rewards("red apple", TEXTS, quality, vectors)
    assert rewards["quality"] == [0.5, 0.9, 0.7, 0.5]  # the last one broke a rule: the lowest of the group
    assert rewards["faithful"] == [1.0, 1.0, pytest.approx(1 / 3), 0.0]
    assert rewards["distance"] == pytest.approx([0.5, 1.0, 0.5, 0.0])  # and nobody is far from it


def test_without_pictures_the_texts_are_compared() -> None:
    rewards = group_rewards("apple", ["a red apple"] * 3 + ["an apple under a tree at dusk"], [1.0] * 4)
    assert rewards["distance"][3] > rewards["distance"][0] > 0
    assert group_rewards("apple", ["a red apple"] * 3, [1.0] * 3)["distance"] == pytest.approx([0.0] * 3, abs=1e-12)


def test_a_group_that_failed_whole_teaches_nothing() -> None:
    rewards = group_rewards("apple", ["", ""], [0.3, 0.9])
    assert rewards == {"quality": [0.3, 0.3], "faithful": [0.0, 0.0], "distance": [0.0, 0.0]}


def test_bad_groups_and_weights() -> None:
    with pytest.raises(ValueError, match="1 texts, 1 scores"):
        group_rewards("a", ["a"], [1.0])
    with pytest.raises(ValueError, match="2 texts, 1 scores"):
        group_rewards("a", ["a", "b"], [1.0])
    with pytest.raises(ValueError, match="one embedding each"):
        group_rewards("a", ["a", "b"], [1.0, 1.0], [[1.0]])
    with pytest.raises(ValueError, match="the distance must count"):
        Weights(distance=0.0)
    with pytest.raises(ValueError, match="of one size"):
        reward_table([], lambda rewards, weights: rewards)


def gdpo(rewards: dict[str, list[list[float]]], weights: dict[str, float]) -> list[list[float]]:
    """Each reward normalised in its group, summed by weight, normalised over the batch (arXiv 2601.05242)."""

    def normal(values: list[float], eps: float = 1e-4) -> list[float]:
        mean = sum(values) / len(values)
        return [
            (v - mean) / (math.sqrt(sum((u - mean) ** 2 for u in values) / (len(values) - 1)) + eps) for v in values
        ]

    names, width = list(rewards), len(next(iter(rewards.values()))[0])
    rows = [
        [sum(weights[name] * part[i] for name, part in zip(names, parts, strict=True)) for i in range(width)]
        for parts in zip(*([normal(row) for row in rewards[name]] for name in names), strict=True)
    ]
    flat = normal([value for row in rows for value in row])
    return [flat[i : i + width] for i in range(0, len(flat), width)]


def test_groups_are_handed_to_the_callers_combination() -> None:
    def group(quality: list[float]) -> dict[str, list[float]]:
        return {"quality": quality, "faithful": [1.0, 1.0], "distance": [0.0, 0.0]}

    groups = [group([0.0, 1.0]), group([0.0, 2.0]), group([1.0, 2.0])]
    advantages = reward_table(groups, gdpo)
    assert [row[1] for row in advantages] == pytest.approx([math.sqrt(5 / 6)] * 3, rel=1e-3)
    table = reward_table(groups, lambda rewards, weights: (rewards, weights), Weights(distance=2.0))
    assert table[0]["quality"] == [[0.0, 1.0], [0.0, 2.0], [1.0, 2.0]]
    assert table[1] == {"quality": 1.0, "faithful": 1.0, "distance": 2.0}


def train_toy(weight: float, seed: int, steps: int = 400) -> tuple[float, float]:
    """64 texts as unit vectors, 16 good ones, one slightly better; a softmax policy learns by its advantages.

    Returns the share of the initial pairwise distance that is kept, and the mean quality.
    """
    draw = random.Random(seed)
    vectors = []
    for _ in range(64):
        vector = [draw.gauss(0, 1) for _ in range(16)]
        size = math.sqrt(sum(v * v for v in vector))
        vectors.append([v / size for v in vector])
    quality = [1.0 if i < 16 else 0.0 for i in range(64)]
    quality[0] += 0.1
    logits = [0.0] * 64

    def policy() -> list[float]:
        top = max(logits)
        raised = [math.exp(value - top) for value in logits]
        return [value / sum(raised) for value in raised]

    def spread(shares: list[float]) -> float:
        mean = [sum(p * v[d] for p, v in zip(shares, vectors, strict=True)) for d in range(16)]
        return 1.0 - sum(value * value for value in mean)

    before = spread(policy())
    for _ in range(steps):
        shares = policy()
        group = draw.choices(range(64), shares, k=8)
        rewards = {"quality": [[quality[i] for i in group]], "distance": [distances([vectors[i] for i in group])]}
        advantages = gdpo(rewards, {"quality": 1.0, "distance": weight})[0]
        for i, advantage in zip(group, advantages, strict=True):
            for j in range(64):
                logits[j] += 0.1 * advantage * ((i == j) - shares[j])
    shares = policy()
    return spread(shares) / before, sum(p * q for p, q in zip(shares, quality, strict=True))


def test_distance_at_weight_one_keeps_a_group_apart_and_at_a_half_does_not() -> None:
    kept = [train_toy(1.0, seed) for seed in range(4)]
    assert min(share for share, _ in kept) >= 0.5
    assert min(quality for _, quality in kept) >= 1.0  # a good text scores 1, the best one 1.1
    for weight in (0.0, 0.5):
        assert max(train_toy(weight, seed)[0] for seed in range(4)) < 0.05
