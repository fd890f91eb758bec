"""Steps that add noise, on Gaussian data, where velocity and marginals are known in closed form at every time."""

import math
from itertools import pairwise

import pytest
import torch
from krea_model.flow import clean, log_prob, stochastic, timesteps
from krea_model.interfaces import Conditioning
from krea_model.packing import image_mean, per_token
from krea_model.sampling import euler, sde, step_noise
from krea_model.testing import FakeTextEncoder
from torch import Tensor

ENCODER = FakeTextEncoder()
MEAN, STD = 1.0, 0.5


def marginal(t):
    """Mean and standard deviation of (1 - t) image + t noise for images from N(MEAN, STD^2)."""
    return (1 - t) * MEAN, ((1 - t) ** 2 * STD**2 + t**2) ** 0.5


class Gaussian:
    """The exact velocity E[noise - image | x] of such images; it remembers mean and deviation of what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning, grids) -> Tensor:
        if len(x) > 2:
            self.seen.append((t[0].item(), x.mean().item(), x.std().item()))
        return self.at(x, per_token(t, grids).to(x))

    def at(self, x, t):
        mean, std = marginal(t)
        away = (x - mean) / std**2
        return away * t - (
            MEAN + away * (1 - t) * STD**2
        )  # covariances of noise and of image with x, over its variance


def deviations(steps: int, scale: float) -> list[tuple[float, float]]:
    """Errors of mean and deviation at each time, by recursion: steps are affine, so two points of each say all."""
    gaussian, mean, variance, errors = Gaussian(), 0.0, 1.0, []
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for t, s in pairwise(timesteps(steps, 0.0)):
        after, std = stochastic(probe, gaussian.at(probe, t), t, s, scale)
        slope = (after[1] - after[0]).item()
        mean, variance = slope * mean + after[0].item(), slope**2 * variance + float(std) ** 2
        exact = marginal(s)
        errors.append((abs(mean - exact[0]), abs(math.sqrt(variance) / exact[1] - 1)))
    return errors


@pytest.mark.parametrize("scale", [0.0, 0.3, 0.7, 1.0])
def test_marginals_are_kept_at_every_time(scale):
    coarse, fine = (deviations(steps, scale) for steps in (640, 5000))
    assert max(max(error) for error in coarse) <= 0.006
    assert max(max(error) for error in fine) <= 0.001


def test_samples_have_the_marginals_of_the_data_at_every_time():
    grid, times = (160, 160), timesteps(200, 0.5)
    start = step_noise([7], 1000, [grid], 1)
    cond = ENCODER(["x"])
    ends = {}
    for name in ("flow", "noise"):
        model = Gaussian()
        if name == "flow":
            ends[name] = euler(model, start, cond, [grid], times)
        else:
            ends[name] = sde(model, start, cond, [grid], times, [7], 0.7)
        assert len(model.seen) == 200
        for t, mean, std in [*model.seen, (0.0, ends[name].mean().item(), ends[name].std().item())]:
            exact = marginal(t)
            assert abs(mean - exact[0]) <= 0.01
            assert abs(std / exact[1] - 1) <= 0.02
    kept = torch.corrcoef(torch.stack([ends["flow"][:, 0], start[:, 0]]))[0, 1]
    new = torch.corrcoef(torch.stack([ends["noise"][:, 0], start[:, 0]]))[0, 1]
    assert kept > 0.99  # the flow turns noise into a picture one to one; with noise in the steps, much is forgotten
    assert abs(new) < 0.05


def test_noise_of_a_fixed_share_fails_the_same_test():
    """What CPS (arXiv 2509.05952) does; it is here to show that the tests above can fail."""
    gaussian, mean, variance = Gaussian(), 0.0, 1.0
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for t, s in pairwise(timesteps(640, 0.0)):
        v = gaussian.at(probe, t)
        after = (1 - s) * clean(probe, v, t) + s * math.cos(0.25 * math.pi) * (probe + (1 - t) * v)
        slope = (after[1] - after[0]).item()
        mean, variance = slope * mean + after[0].item(), slope**2 * variance + (s * math.sin(0.25 * math.pi)) ** 2
    assert math.sqrt(variance) / STD - 1 == pytest.approx(-0.081, abs=0.002)  # as measured with the authors' formula


def test_small_steps_are_those_of_the_published_equation():
    x, v = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, scale = 0.6, 0.7
    sigma = scale * math.sqrt(t / (1 - t))
    drift = v + sigma**2 / (2 * t) * (x + (1 - t) * v)
    for size in (1e-3, 1e-4):
        mean, std = stochastic(x, v, t, t - size, scale)
        assert (x - size * drift - mean).abs().max() <= 40 * size**2
        assert float(std) ** 2 / size == pytest.approx(sigma**2, rel=10 * size)


def test_a_step_of_any_size_leaves_the_noise_at_its_level():
    image, eps = torch.zeros(1), torch.ones(1)
    for t, s, scale in ((1.0, 0.3, 0.7), (0.9, 0.1, 0.5), (0.5, 0.4, 2.0), (0.7, 0.2, 0.0)):
        mean, std = stochastic((1 - t) * image + t * eps, eps - image, t, s, scale)
        assert mean.item() ** 2 + float(std) ** 2 == pytest.approx(s**2, abs=1e-6)


def test_ends_and_scale_zero():
    x, v = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1))
    mean, std = stochastic(x, v, 0.4, 0.0, 0.7)
    assert std == 0  # no white noise of the sampler in the picture
    assert torch.allclose(mean, clean(x, v, 0.4), atol=1e-6)
    mean, std = stochastic(x, v, 1.0, 0.5, 0.7)
    assert std == 0.5
    assert torch.allclose(mean, 0.5 * (x - v), atol=1e-6)
    mean, std = stochastic(x, v, 0.8, 0.5, 0.0)
    assert std == 0
    assert torch.allclose(mean, x - 0.3 * v, atol=1e-6)


def test_probabilities_are_those_of_the_normal_distribution():
    grids, generator = [(2, 2), (1, 3)], torch.Generator().manual_seed(0)
    after, mean = torch.randn(2, 7, 5, generator=generator)
    want = torch.distributions.Normal(mean, 0.3).log_prob(after)
    assert torch.allclose(log_prob(after, mean, 0.3, grids), image_mean(want, grids), atol=1e-5)
    stds = per_token(torch.tensor([0.3, 0.6]), grids)
    want = torch.distributions.Normal(mean, stds).log_prob(after)
    assert torch.allclose(log_prob(after, mean, stds, grids), image_mean(want, grids), atol=1e-5)
    with pytest.raises(ValueError, match="a step without noise has no density"):
        log_prob(after, mean, 0.0, grids)


def test_noise_of_a_step_belongs_to_the_seed_and_the_step():
    grids, cond = [(4, 4), (2, 3)], ENCODER(["x", "y"])
    together = step_noise([3, 4], 5, grids, 6).split([16, 6])
    assert torch.equal(together[1], step_noise([4], 5, [(2, 3)], 6))
    assert not torch.equal(together[1], step_noise([4], 6, [(2, 3)], 6))
    assert abs(step_noise([3], 0, [(64, 64)], 8).std() - 1) < 0.02
    times = [timesteps(6, mu) for mu in (0.3, 1.2)]
    start = step_noise([1, 2], 99, grids, 6)
    both = sde(Gaussian(), start, cond, grids, times, [3, 4])
    alone = sde(Gaussian(), start[16:], ENCODER(["y"]), [(2, 3)], times[1], [4])
    assert torch.allclose(both[16:], alone, atol=1e-5)
    assert torch.equal(both, sde(Gaussian(), start, cond, grids, times, [3, 4]))
