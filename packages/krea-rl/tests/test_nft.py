"""The worked example of the optimum, and learning without noise in the sampler."""

import copy

import pytest
import torch
from krea_rl.grpo import Studio
from krea_rl.nft import NFT, Noised, blend, nft_loss, nft_update, optimality
from krea_rl.rewards import Rewards, Term
from krea_rl.rollout import Sampler
from krea_rl.testing import LinearHead, NearPoint, PlainText, Ring, as_points, points

PICTURES = torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64)  # as velocities
AT = Noised(
    x=torch.zeros(4, 1, dtype=torch.float64), x0=-PICTURES, t=torch.ones(4, dtype=torch.float64), grids=points(4)
)


def gradient(at: float, r: torch.Tensor, *, scaled: bool) -> float:
    v = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    old = torch.full((4, 1), 2.0, dtype=torch.float64)
    loss = nft_loss(v.expand(4, 1), old, AT, r, 0.5, scaled=scaled)
    return torch.autograd.grad(loss, v)[0].item()


def test_optimum_of_the_worked_example() -> None:
    r = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    low, high = gradient(0.0, r, scaled=False), gradient(10.0, r, scaled=False)
    assert 10 * low / (low - high) == pytest.approx(4.1, abs=1e-3)  # the gradient is linear: this is its zero


@pytest.mark.parametrize("scaled", [True, False])
def test_average_pictures_pull_nowhere(scaled: bool) -> None:
    assert gradient(2.0, torch.full((4,), 0.5, dtype=torch.float64), scaled=scaled) == pytest.approx(0, abs=1e-12)


def test_optimality_maps_advantages() -> None:
    assert optimality(torch.tensor([-9.0, -5.0, 0.0, 2.5, 5.0]), 5.0).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]


def test_updates_raise_the_reward_and_old_follows() -> None:
    ring = Ring(weights=(1,) * 8)
    model = LinearHead(ring)
    old = copy.deepcopy(model)
    studio = Studio(
        text=PlainText(),
        decode=as_points,
        rewards=Rewards(Term(name="near", reward=NearPoint(-2.0, 0.0))),
        grid=(1, 1),
        features=2,
        sampler=Sampler(steps=10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
    rewards = [
        nft_update(model, old, optimizer, [""], studio, NFT(group=64), step).metrics["reward/near"]
        for step in range(60)
    ]
    assert rewards[0] < 0.3
    assert sum(rewards[-5:]) / 5 >= 0.85
    assert torch.equal(model.head, old.head)


def test_blend_is_a_running_mean() -> None:
    a, b = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.constant_(a.weight, 1.0)
    torch.nn.init.constant_(b.weight, 2.0)
    blend(a, b, 0.75)
    assert a.weight.item() == 1.25


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        NFT(beta=0.0)
    with pytest.raises(ValueError, match=r"not in \[0, 1\)"):
        NFT(decay=1.0)
