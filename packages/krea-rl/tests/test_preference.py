"""Values computed by hand, and the fault of plain DPO with its cure on a flow of the plane."""

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from krea_model.testing import FakeAutoencoder, FakeTextEncoder, tiny_model
from krea_rl.preference import (
    Pairs,
    Preference,
    PreferenceObjective,
    Side,
    compare,
    dpo,
    dpo_positive,
    preference_loss,
    safeguard,
    sdpo,
    stpo,
)
from krea_rl.testing import LinearHead, PlainText, Ring, points
from krea_train.interfaces import Objective


def side(error: float, reference: float, dtype: torch.dtype = torch.float64) -> Side:
    """One image of one number with the given squared errors."""
    v, v_ref = (torch.tensor([[math.sqrt(e)]], dtype=dtype) for e in (error, reference))
    return Side(v=v, v_ref=v_ref, target=torch.zeros(1, 1, dtype=dtype))


def test_dpo_value() -> None:
    loss, metrics = preference_loss(dpo(100.0), side(0.10, 0.12), side(0.20, 0.18), points(1))
    assert metrics["logit"].item() == pytest.approx(2.0, abs=1e-6)
    assert loss.item() == pytest.approx(0.126928, abs=1e-6)
    assert metrics["winner_delta"].item() == pytest.approx(-0.02)
    assert metrics["loser_delta"].item() == pytest.approx(0.02)
    loss, _ = preference_loss(dpo(100.0), side(0.3, 0.3), side(0.2, 0.2), points(1))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_beta_saturates_without_nan(dtype: torch.dtype) -> None:
    loss, _ = preference_loss(dpo(2000.0), side(0.10, 0.12, dtype), side(0.20, 0.18, dtype), points(1))
    assert 0 <= loss.item() < 1e-15


def test_mean_is_taken_outside_the_sigmoid() -> None:
    zero = torch.zeros(2, 1, dtype=torch.float64)
    ref = torch.full((2, 1), 0.1, dtype=torch.float64).sqrt()
    winner = Side(v=torch.tensor([[0.0], [0.2]], dtype=torch.float64).sqrt(), v_ref=ref, target=zero)
    loser = Side(v=ref, v_ref=ref, target=zero)
    loss, _ = preference_loss(dpo(100.0), winner, loser, points(2))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-5)) + math.log1p(math.exp(5))) / 2)


def test_hinge_value_and_dead_gradient() -> None:
    loss, metrics = preference_loss(dpo_positive(100.0, 5.0), side(0.11, 0.10), side(0.25, 0.20), points(1))
    assert metrics["logit"].item() == pytest.approx(-0.5, abs=1e-6)
    assert loss.item() == pytest.approx(0.974077, abs=1e-6)
    grads = []
    for hinge in (0.0, 5.0):
        v = torch.tensor([[0.2]], dtype=torch.float64, requires_grad=True)
        winner = Side(v=v, v_ref=torch.tensor([[0.3]], dtype=torch.float64), target=torch.zeros(1, 1))
        loss, _ = preference_loss(Preference(beta=10.0, hinge=hinge), winner, side(0.2, 0.2), points(1))
        grads.append(torch.autograd.grad(loss, v)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize(("mu", "factor"), [(0.0, 0.5), (0.5, 0.25), (0.9, 0.05)])
def test_safeguard_factor_and_first_order_identity(mu: float, factor: float) -> None:
    g_w, g_l = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 1.0]])
    found = safeguard(g_w, g_l, mu)
    assert found.item() == pytest.approx(factor)
    assert -(g_w * (g_w - found * g_l)).sum().item() == pytest.approx(-mu)
    assert safeguard(g_w, -g_l, mu).item() == 1.0
    assert safeguard(g_w, torch.tensor([[0.0, 1.0]]), mu).item() == 1.0


def test_safeguard_changes_the_gradient_of_the_loser_alone() -> None:
    found = {}
    for weights in (dpo(5.0), sdpo(5.0, 0.5)):
        v_w = torch.tensor([[1.0, 0.0]], requires_grad=True)
        v_l = torch.tensor([[2.0, 1.0]], requires_grad=True)
        zero = torch.zeros(1, 2)
        loss, _ = preference_loss(
            weights, Side(v=v_w, v_ref=zero, target=zero), Side(v=v_l, v_ref=zero, target=zero), points(1)
        )
        found[weights.safeguard] = (loss.detach(), *torch.autograd.grad(loss, (v_w, v_l)))
    assert torch.equal(found[None][0], found[0.5][0])
    assert torch.equal(found[None][1], found[0.5][1])
    torch.testing.assert_close(found[0.5][2], 0.25 * found[None][2])


def test_keep_and_anchor_values() -> None:
    winner, loser = side(0.09, 0.04), side(0.16, 0.01)
    plain, _ = preference_loss(dpo(10.0), winner, loser, points(1))
    both, _ = preference_loss(Preference(beta=10.0, anchor=2.0, keep=4.0), winner, loser, points(1))
    assert (both - plain).item() == pytest.approx(2 * 0.09 + 4 * (0.01 + 0.09) / 2)


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.0}, {"beta": 1.0, "hinge": -1.0}, {"beta": 1.0, "safeguard": 1.5}, {"beta": 1.0, "keep": -0.1}]
)
def test_wrong_weights_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"use|suit"):
        Preference(**wrong)


@dataclass(frozen=True)
class Plane:
    """The loser of a pair is its winner moved by 0.3 to the right."""

    winner: torch.Tensor
    loser: torch.Tensor

    def batch(self, count: int, generator: torch.Generator) -> tuple[Pairs, torch.Tensor, torch.Tensor]:
        i = torch.randint(len(self.winner), (count,), generator=generator)
        cond = PlainText()([""] * count)
        pairs = Pairs(winner=self.winner[i], loser=self.loser[i], cond=cond, grids=points(count))
        t = 0.05 + 0.9 * torch.rand(count, generator=generator)
        return pairs, t, torch.randn(count, 2, generator=generator)


def train(weights: Preference, seed: int, lr: float = 2e-3, steps: int = 300) -> tuple[float, float, float]:
    """Winner's rise at the end and at its peak (summed over the two dimensions), and held-out accuracy."""
    ring, generator = Ring(), torch.Generator().manual_seed(seed)
    winner = ring.draw(512, generator)
    plane = Plane(winner, winner + torch.tensor([0.3, 0.0]) + 0.05 * torch.randn(512, 2, generator=generator))
    model = LinearHead(ring)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    held = plane.batch(3000, torch.Generator().manual_seed(99))
    peak, metrics = -1.0, {}
    for step in range(1, steps + 1):
        loss, _ = compare(model, ring, *plane.batch(128, generator), weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            with torch.no_grad():
                _, metrics = compare(model, ring, *held, weights)
            peak = max(peak, 2 * metrics["winner_delta"].item())
    return 2 * metrics["winner_delta"].item(), peak, metrics["accuracy"].item()


@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_drifts_and_stpo_does_not(seed: int) -> None:
    drift, _, accuracy = train(dpo(40.0), seed)
    assert drift >= 0.15
    assert accuracy >= 0.95
    rise, _, accuracy = train(stpo(40.0), seed)
    assert rise <= 0.05
    assert rise <= drift / 4
    assert accuracy >= 0.93  # holding still would be safe too: it must have learned


def test_stpo_holds_at_a_harsh_optimizer_step() -> None:
    _, peak, accuracy = train(stpo(40.0), 0, lr=2e-2, steps=600)
    assert peak <= 0.12
    assert accuracy >= 0.90


def test_anchor_scales_with_beta() -> None:
    assert stpo(40.0) == Preference(beta=40.0, hinge=0.25, anchor=2.0)


class Shown:
    """A batch as the training loop hands it over."""

    def __init__(self, count: int, names: str = "abcdefgh") -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
        self.captions = [{"short": "cat", "long": f"a cat {i // 2}"} for i in range(count)]
        self.ids = list(names[:count])


def objective(weights: Preference) -> PreferenceObjective:
    return PreferenceObjective(
        weights=weights,
        reference=copy.deepcopy(tiny_model()),
        latents=lambda batch, step: FakeAutoencoder().encode(batch.images.float() / 127.5 - 1),
        text=FakeTextEncoder(),
        seed=5,
    )


def test_objective_starts_at_log_two_and_learns() -> None:
    fit: Objective = objective(dpo(50.0))
    model, batch = tiny_model(), Shown(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss, metrics = fit(model, batch, 0)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["winner_delta"].item() == 0
    for _ in range(5):
        loss, _ = fit(model, batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after, metrics = fit(model, batch, 0)
    assert after.item() < math.log(2) - 0.1
    assert metrics["accuracy"].item() == 1.0
    assert not any(value.requires_grad for value in metrics.values())


def test_step_and_seed_change_the_draws() -> None:
    model, batch = tiny_model(seed=1), Shown(4)
    losses = [objective(dpo(50.0))(model, batch, step)[0].item() for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    other = replace(objective(dpo(50.0)), seed=6)
    assert other(model, batch, 0)[0].item() != losses[0]


def test_broken_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="no whole pairs"):
        objective(dpo(50.0))(tiny_model(), Shown(3), 0)
    cond = PlainText()([""])
    with pytest.raises(ValueError, match="one size"):
        Pairs(winner=torch.zeros(1, 2), loser=torch.zeros(2, 2), cond=cond, grids=points(1))
