"""One update does what it says, and many raise a reward whose optimum is known."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from krea_model.interfaces import Conditioning, Grids
from krea_model.testing import FakeAutoencoder, FakeTextEncoder, tiny_model
from krea_rl.grpo import GRPO, Studio, collect, decoder, learn, step_loss, update
from krea_rl.rewards import Rewards, Term
from krea_rl.rollout import Draws, Sampler, rollout
from krea_rl.testing import Brightness, LinearHead, NearPoint, PlainText, Ring, as_points, points
from torch import Tensor, nn

TARGET = (-2.0, 0.0)


def plane(steps: int = 10) -> Studio:
    return Studio(
        text=PlainText(),
        decode=as_points,
        rewards=Rewards(Term(name="near", reward=NearPoint(*TARGET))),
        grid=(1, 1),
        features=2,
        sampler=Sampler(steps=steps),
    )


def hits(model: nn.Module, count: int = 1000) -> float:
    """Share of noiseless pictures within 0.6 of the target."""
    draws, sampler = Draws(seed=7, step=0, ids=tuple(range(count))), Sampler(steps=25, noise=0.0)
    start = draws.normals("start", points(count), 2)
    out = rollout(model, start, PlainText()([""] * count), points(count), sampler, draws)
    return ((out.tokens - torch.tensor(TARGET)).norm(dim=1) < 0.6).float().mean().item()


def run(updates: int, state: dict | None = None, first: int = 0) -> tuple[LinearHead, torch.optim.Optimizer]:
    model = LinearHead(Ring(weights=(1,) * 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(first, first + updates):
        update(model, optimizer, [""], plane(), GRPO(group=32, clip=0.2), step)
    return model, optimizer


def test_updates_reach_the_known_optimum() -> None:
    assert hits(Ring(weights=(1,) * 8)) < 0.2  # type: ignore[arg-type]
    model, _ = run(60)
    assert hits(model) >= 0.8


def test_a_resumed_run_equals_the_unbroken_one() -> None:
    whole, _ = run(6)
    half, optimizer = run(3)
    state = copy.deepcopy({"model": half.state_dict(), "optimizer": optimizer.state_dict()})
    resumed, _ = run(3, state, first=3)
    assert torch.equal(whole.head, resumed.head)


def test_divergence_to_the_reference_holds_back() -> None:
    ring, found = Ring(), {}
    for weight in (0.0, 100.0):
        model = LinearHead(ring)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
        for step in range(5):
            update(model, optimizer, [""], plane(), GRPO(group=32, clip=0.2, kl=weight), step, ring)
        found[weight] = model.head.norm().item()
    assert found[100.0] < 0.7 * found[0.0]
    with pytest.raises(ValueError, match="needs the reference"):
        update(LinearHead(ring), optimizer, [""], plane(), GRPO(kl=1.0), 0)


def drawing(seed: int = 0) -> Studio:
    autoencoder = FakeAutoencoder()
    return Studio(
        text=FakeTextEncoder(),
        decode=decoder(autoencoder),
        rewards=Rewards(Term(name="bright", reward=Brightness())),
        grid=(2, 2),
        features=autoencoder.channels * 4,
        sampler=Sampler(steps=4),
        seed=seed,
    )


class Counted(nn.Module):
    """A model that counts the pictures it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.pictures = model, 0

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        self.pictures += len(grids)
        return self.model(x, t, cond, grids)


def brightness(model: nn.Module) -> float:
    """Mean reward of 32 pictures without noise in the steps, at seeds that learning did not see."""
    studio = replace(drawing(seed=9), sampler=Sampler(steps=4, noise=0.0))
    group = collect(model, "a red cat", 0, studio, GRPO(group=32), 0)
    return studio.rewards(["a red cat"] * 32, studio.decode(group.tokens, group.grids))["bright"].mean().item()


def test_transformer_learns_and_no_pass_is_spent_on_guidance() -> None:
    model = Counted(tiny_model())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    config = GRPO(group=6, clip=1e-2)
    prompts, before = ["a red cat", "dog"], brightness(model.model)
    for step in range(6):
        seen = update(model, optimizer, prompts, drawing(), config, step)
        assert seen.metrics["ratio_max"] == 0
        assert seen.scores["bright"].shape == (2, 6)
    assert model.pictures == 6 * 2 * 6 * (4 + 3)  # updates, prompts, group, 4 steps drawn and 3 learned
    assert brightness(model.model) > before + 0.01


def test_ratio_is_exactly_one_before_the_first_update() -> None:
    model = tiny_model()
    group = collect(model, "a cat", 0, drawing(), GRPO(group=4), 0)
    for index in range(len(group.steps)):
        _, stats = step_loss(model, group, index, torch.tensor([1.0, -1.0, 2.0, 0.0]), GRPO(), None)
        assert stats[2].item() == 0


def test_clip_stops_the_gradient_of_what_has_moved_far_enough() -> None:
    model = LinearHead(Ring())
    group = collect(model, "", 0, plane(3), GRPO(group=2), 0)
    step = group.steps[0]
    moved = replace(step, log_prob=step.log_prob - math.log(1.5))  # now half again as likely as when drawn
    group = replace(group, steps=(moved,))
    for advantage, expected in ((1.0, -1.2), (-1.0, 1.5)):
        model.zero_grad()
        loss, stats = step_loss(model, group, 0, torch.full((2,), advantage), GRPO(clip=0.2), None)
        loss.backward()
        assert loss.item() == pytest.approx(expected)
        assert stats[1].item() == float(advantage > 0)
        assert (model.head.grad.norm().item() == 0) == (advantage > 0)  # type: ignore[union-attr]


def test_same_noise_gives_a_group_one_start() -> None:
    model = LinearHead(Ring())
    for same in (True, False):
        group = collect(model, "", 0, plane(), GRPO(group=3, same_noise=same), 0)
        start = group.steps[0].x
        assert torch.equal(start[0], start[1]) is same
        assert not torch.equal(group.steps[0].after[0], group.steps[0].after[1])


def test_a_loss_that_is_not_finite_leaves_the_model_alone() -> None:
    model = LinearHead(Ring())
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    group = collect(model, "", 0, plane(), GRPO(group=2), 0)
    with pytest.raises(ValueError, match="not finite; the model was left"):
        learn(model, optimizer, [group], torch.tensor([[float("nan"), 1.0]]), GRPO())
    assert model.head.abs().max().item() == 0


@pytest.mark.parametrize("wrong", [{"group": 1}, {"clip": 0.0}, {"epochs": 0}, {"kl": -1.0}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"compare|must be"):
        GRPO(**wrong)


def test_a_sampler_without_noise_is_refused() -> None:
    studio = replace(plane(), sampler=Sampler(steps=1))
    model = LinearHead(Ring())
    with pytest.raises(ValueError, match="nothing to learn"):
        update(model, torch.optim.SGD(model.parameters(), lr=0.1), [""], studio, GRPO(group=2), 0)
