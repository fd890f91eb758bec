"""Marginals in closed form, terminal noise, probabilities against torch.distributions, exact replay."""

import math
from itertools import pairwise

import pytest
import torch
from krea_model.interfaces import Conditioning, Grids
from krea_model.packing import image_mean, per_token
from krea_model.sampling import sample
from krea_model.testing import FakeTextEncoder, tiny_model
from krea_rl.rollout import Draws, Sampler, Step, kl, log_prob, moments, ode, rollout, sigma, transition
from krea_rl.testing import LinearHead, PlainText, Ring, points
from torch import Tensor


class Gaussian:
    """Exact velocity of images from N(mean, std^2)."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std, self.calls = mean, std, 0

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        self.calls += 1
        t = per_token(t, grids).to(x.dtype)
        share = (1 - t) * self.std**2 / ((1 - t) ** 2 * self.std**2 + t**2)
        return (x - self.mean - share * (x - (1 - t) * self.mean)) / t


def final(gaussian: Gaussian, sampler: Sampler) -> tuple[float, float]:
    """Mean and std of the pictures by recursion: each step is affine, so two points of it say all."""
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    cond, times = PlainText()(["", ""]), sampler.times
    mean, variance = 0.0, 1.0
    for i, (t, s) in enumerate(pairwise(times)):
        v = gaussian(probe, torch.full((2,), t, dtype=torch.float64), cond, points(2))
        std = 0.0
        if i in sampler.stochastic:
            at, std = moments(probe, v, t, s, sigma(t, sampler.noise, times[1]))
        else:
            at = ode(probe, v, t, s)
        slope = (at[1] - at[0]).item()
        mean, variance = slope * mean + at[0].item(), slope**2 * variance + std**2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(("steps", "bound"), [(640, 0.005), (5000, 0.002)])
@pytest.mark.parametrize("noise", [0.0, 0.3, 0.7])
def test_marginals_are_kept(steps: int, bound: float, noise: float) -> None:
    mean, std = final(Gaussian(1.0, 0.5), Sampler(steps=steps, noise=noise))
    assert abs(std / 0.5 - 1) <= bound
    assert abs(mean - 1) <= bound


def test_few_steps_keep_more_spread_than_the_flow() -> None:
    _, noisy = final(Gaussian(1.0, 0.05), Sampler(steps=10, noise=0.7))
    _, quiet = final(Gaussian(1.0, 0.05), Sampler(steps=10, noise=0.0))
    assert noisy == pytest.approx(0.0268, abs=0.0005)
    assert quiet == pytest.approx(0.0199, abs=0.0005)


def test_rollout_agrees_with_the_recursion() -> None:
    gaussian, sampler, n = Gaussian(1.0, 0.5), Sampler(steps=10, noise=0.7), 20000
    grids, draws = [(100, 200)], Draws(seed=0, step=0, ids=("one",))
    out = rollout(gaussian, draws.normals("start", grids, 1), PlainText()([""]), grids, sampler, draws).tokens
    mean, std = final(gaussian, sampler)
    assert out.std().item() == pytest.approx(std, abs=4 * std / math.sqrt(2 * n))
    assert out.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(n))


def test_mode_weights_are_kept() -> None:
    ring, n = Ring(), 4000
    draws, sampler = Draws(seed=1, step=0, ids=tuple(range(n))), Sampler(steps=100, noise=0.7, window=(0, 60))
    start = draws.normals("start", points(n), 2)
    out = rollout(ring, start, PlainText()([""] * n), points(n), sampler, draws).tokens
    share = torch.bincount(torch.cdist(out, ring.centres).argmin(1), minlength=8) / n
    assert (share - ring.weights).abs().sum().item() / 2 <= 0.04


def test_the_last_step_reads_out_without_noise() -> None:
    sampler = Sampler(steps=4)
    draws, grids, cond = Draws(seed=0, step=0, ids=(0, 1, 2)), points(3), PlainText()([""] * 3)
    found = rollout(Gaussian(0.0, 1.0), draws.normals("start", grids, 2), cond, grids, sampler, draws)
    assert [step.s for step in found.steps] == sampler.times[1:-1]
    last, t = found.steps[-1].after, sampler.times[-2]
    v = Gaussian(0.0, 1.0)(last, torch.full((3,), t), cond, grids)
    torch.testing.assert_close(found.tokens, last - t * v)


def test_window_and_zero_noise_follow_the_flow() -> None:
    model, cond, grids = tiny_model(), FakeTextEncoder()(["a cat", "dog"]), [(2, 3), (1, 2)]
    draws = Draws(seed=0, step=0, ids=("a", "b"))
    start = draws.normals("start", grids, model.config.token_features)
    quiet = rollout(model, start, cond, grids, Sampler(steps=5, noise=0.0, mu=0.5), draws)
    with torch.no_grad():
        expected = sample(model, start, cond, grids, steps=5, mu=0.5)
    assert torch.equal(quiet.tokens, expected)
    assert quiet.steps == ()
    windowed = rollout(model, start, cond, grids, Sampler(steps=5, window=(1, 3)), draws)
    times = Sampler(steps=5).times
    assert [step.t for step in windowed.steps] == times[1:3]


def test_replay_is_exact_before_an_update() -> None:
    model, cond, grids = tiny_model(), FakeTextEncoder()(["a cat", "dog", "a red bird"]), [(2, 3), (1, 2), (2, 2)]
    draws = Draws(seed=0, step=0, ids=(0, 1, 2))
    found = rollout(model, draws.normals("start", grids, 192), cond, grids, Sampler(steps=6), draws)
    for step in found.steps:
        again, _, _ = transition(model, step, cond, grids)
        assert torch.equal((again - step.log_prob).exp(), torch.ones(3))


def test_forward_passes_are_counted() -> None:
    gaussian, draws = Gaussian(0.0, 1.0), Draws(seed=0, step=0, ids=(0,))
    rollout(gaussian, draws.normals("start", points(1), 2), PlainText()([""]), points(1), Sampler(steps=7), draws)
    assert gaussian.calls == 7


@pytest.mark.parametrize("others", [[(2, 1), (2, 1)], [(1, 1), (3, 1)]])
def test_a_picture_does_not_depend_on_its_batch(others: list[tuple[int, int]]) -> None:
    sampler, text = Sampler(steps=5), PlainText()
    found = []
    for ids, grids in (((7, 8, 9), [others[0], (2, 1), others[1]]), ((8,), [(2, 1)])):
        draws = Draws(seed=0, step=4, ids=ids)
        start = draws.normals("start", grids, 2)
        out = rollout(Gaussian(0.0, 0.5), start, text([""] * len(ids)), grids, sampler, draws)
        found.append(out.tokens)
    before = others[0][0] * others[0][1]
    torch.testing.assert_close(found[0][before : before + 2], found[1])


def test_probabilities_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    after, mean, other = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    grids = [(2, 1), (2, 2)]
    ours = log_prob(after, mean, 0.3, grids)
    normal = torch.distributions.Normal(mean, 0.3)
    torch.testing.assert_close(ours, image_mean(normal.log_prob(after), grids))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(other, 0.3))
    torch.testing.assert_close(kl(mean, other, 0.3, grids), image_mean(expected, grids))


def test_kl_of_a_path_does_not_depend_on_the_number_of_steps() -> None:
    totals = []
    for steps in (10, 20):
        gap = torch.full((1, 3), 0.2 / steps)  # the same drift, taken in smaller steps
        std = 0.5 * math.sqrt(1 / steps)
        totals.append(steps * kl(gap, torch.zeros(1, 3), std, points(1)).item())
    assert totals[0] == pytest.approx(totals[1], rel=0.01)


def test_mean_log_ratio_is_biased_below_zero() -> None:
    generator = torch.Generator().manual_seed(3)
    after, mean = 0.3 * torch.randn(20000, 1024, generator=generator), torch.zeros(1)
    grids = points(20000)
    gap = log_prob(after, mean + 0.01, 0.3, grids) - log_prob(after, mean, 0.3, grids)
    assert gap.mean().item() == pytest.approx(-5.56e-4, abs=3e-5)


def test_gradient_of_the_log_probability_is_a_finite_difference() -> None:
    model, grids, cond = LinearHead(Ring(), features=8).double(), points(2), PlainText()(["", ""])
    x, after = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    step = Step(x=x, after=after, t=0.6, s=0.5, sigma=0.7, log_prob=torch.zeros(2))

    def likely(head: Tensor) -> Tensor:
        step_model = torch.func.functional_call
        v = step_model(model, {"head": head}, (x, torch.full((2,), 0.6, dtype=torch.float64), cond, grids))
        mean, std = moments(x, v, step.t, step.s, step.sigma)
        return log_prob(after, mean, std, grids)

    assert torch.autograd.gradcheck(likely, (model.head.detach().requires_grad_(),))
    torch.testing.assert_close(transition(model, step, cond, grids)[0], likely(model.head))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"noise": -1.0}, {"steps": 5, "window": (0, 5)}, {"window": (3, 2)}])
def test_wrong_samplers_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"use|needed"):
        Sampler(**wrong)
