import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from krea_model.flow import timesteps
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.sampling import euler
from krea_train import AdamW, Average, Distillation, Optimizer, Pair, Settings, fit, warmup_stable_decay
from krea_train.average import power
from krea_train.interfaces import Batch
from krea_train.objectives.distill import blend
from krea_train.testing import SquareBatch
from torch import Tensor, nn

ANGLES = torch.arange(8) * math.pi / 4
CENTRES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
SHARES = torch.tensor([4.0, 1, 1, 1, 4, 1, 1, 1]) / 14
SPREAD = 0.15


def mixture(x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
    """The exact velocity of eight small Gaussians on a circle."""
    t = t[:, None].clamp(max=1 - 1e-6)
    variance = ((1 - t) * SPREAD) ** 2 + t * t
    d = x[:, None] - (1 - t)[:, :, None] * CENTRES
    p = torch.softmax(-(d**2).sum(-1) / (2 * variance) + SHARES.log(), 1)
    image = (p[..., None] * (CENTRES + ((1 - t) * SPREAD**2 / variance)[:, :, None] * d)).sum(1)
    return (x - image) / t


class Corrected(nn.Module):
    """The exact velocity plus a small network that begins at zero: a fine-tuned copy of the teacher."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("waves", torch.randn(3, width) * torch.tensor([[1.2], [1.2], [4.0]]))
        self.net = nn.Sequential(
            nn.Linear(2 * width + 3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        h = torch.cat([x, t[:, None]], 1)
        waves = h @ self.waves  # type: ignore[operator]
        return mixture(x, t, cond, grids) + self.net(torch.cat([h, waves.sin(), waves.cos()], 1))


class Prompts:
    """Batches without pictures: distillation needs none."""

    def __init__(self, count: int) -> None:
        self.count, self.position = count, 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.position += 1
            ids = [f"{self.position}/{i}" for i in range(self.count)]
            yield SquareBatch(images=torch.zeros(self.count, 3, 1, 1), captions=[{"short": "a"}] * self.count, ids=ids)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


def text(prompts: Sequence[str]) -> Conditioning:
    """One number per prompt: 1 for words, 0 for none."""
    return Conditioning(torch.tensor([[[float(bool(p))]] for p in prompts]), (1,) * len(prompts))


def grids(batch: Batch) -> Grids:
    return [(1, 1)] * len(batch.ids)


def objective(teacher: Velocity, **settings: Any) -> Distillation:
    return Distillation(teacher=teacher, text=text, grids=grids, features=2, seed=0, mu=0.0, **settings)


def draw(velocity: Velocity, steps: int, seed: int, count: int = 2000) -> Tensor:
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return euler(velocity, x, text(["a"] * count), [(1, 1)] * count, timesteps(steps, 0.0))


def mmd(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy, unbiased, mean over four Gaussian kernels."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        d = torch.cdist(x, y).square()
        return torch.stack([torch.exp(-d / (2 * s * s)) for s in (0.1, 0.3, 1.0, 3.0)]).mean(0)

    n = len(a)
    within = [(kernel(x, x).sum() - n) / (n * (n - 1)) for x in (a, b)]
    return float(within[0] + within[1] - 2 * kernel(a, b).mean())


def distil(count: int, iterations: int, batch: int) -> tuple[float, float, Tensor]:
    """MMD^2 to the teacher's 50 steps of the teacher and of the student at `count` steps, and the student's samples."""
    torch.manual_seed(0)
    pair = Pair(Corrected(), Corrected())
    pair.fake.load_state_dict(pair.student.state_dict())
    rate = AdamW(lr=1e-3, betas=(0.5, 0.99), weight_decay=0.0)
    optimizer = Optimizer(pair, rate, rate=lambda name: 5.0 if name.startswith("fake.") else 1.0)
    schedule = functools.partial(warmup_stable_decay, steps=iterations, warmup=20, decay=iterations * 2 // 3)
    average = Average(pair, power(6.94))
    settings = Settings(steps=iterations, schedule=schedule, clip=None, log_every=1000)
    fit(pair, Prompts(batch), objective(mixture, steps=(count,)), optimizer, settings, average=average)
    truth = draw(mixture, 50, 1)
    with average.applied():
        samples = draw(pair.student, count, 3)
    return mmd(draw(mixture, count, 3), truth), mmd(samples, truth), samples


def test_two_steps_learn_what_takes_the_teacher_many():
    teacher, student, _ = distil(2, 250, 192)
    assert teacher > 0.05
    assert student < 0.4 * teacher


@pytest.mark.slow
def test_four_steps_come_within_half_of_the_teachers_error():
    teacher, student, samples = distil(4, 1500, 256)
    assert student < 0.5 * teacher
    nearest = torch.cdist(samples, CENTRES).argmin(1)
    share = torch.bincount(nearest, minlength=8) / len(samples)
    assert (share - SHARES).abs().sum() / 2 < 0.06
    assert (samples - CENTRES[nearest]).std() < 0.2


def test_a_renoised_state_of_the_flow_stays_one():
    start, s0 = 0.4, 0.7
    t = torch.linspace(start, 0.999, 7, dtype=torch.float64)
    implied, fresh = torch.eye(2, dtype=torch.float64)[:, :, None]
    noise = blend(implied, fresh, start, t)
    torch.testing.assert_close(noise.square().sum(0), torch.ones_like(t), rtol=0, atol=1e-12)
    variance = ((1 - t) * s0) ** 2 + (t * noise).square().sum(0)
    torch.testing.assert_close(variance, ((1 - t) * s0) ** 2 + t**2, rtol=0, atol=1e-12)
    assert noise[0, 0] == pytest.approx(1)
    assert noise[1, 0] == pytest.approx(0, abs=1e-7)
    alpha = (1 - t) / (1 - start)
    torch.testing.assert_close(t * noise[0], alpha * start)  # what is left of the state's own noise
    assert torch.equal(blend(implied, fresh, 0.0, t), fresh.expand(2, 7))


class Scaled(nn.Module):
    """A velocity under which the clean image is `k` x."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k))

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        return (x - self.k * x) / t[:, None]


class Posterior(nn.Module):
    """The velocity whose clean image is the posterior mean for images N(0, s^2) under independent noise."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(s))

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        t = t[:, None]
        variance = ((1 - t) * self.s) ** 2 + t**2
        return (x - (1 - t) * self.s**2 / variance * x) / t


def test_the_fake_model_learns_the_students_posterior_mean():
    pair = Pair(Scaled(0.5), Posterior(1.0))
    pair.student.requires_grad_(False)
    settings = Settings(
        steps=200, clip=None, log_every=1000, schedule=functools.partial(warmup_stable_decay, steps=200, decay=150)
    )
    fit(pair, Prompts(128), objective(mixture, steps=(1,)), Optimizer(pair, AdamW(lr=0.05, weight_decay=0.0)), settings)
    assert isinstance(pair.fake, Posterior)
    assert abs(pair.fake.s.item()) == pytest.approx(0.5, rel=0.02)  # one step: the image is half the noise


def test_student_and_fake_send_each_other_no_gradients():
    torch.manual_seed(0)
    pair = Pair(Corrected(), Corrected())
    batch = next(iter(Prompts(8)))
    pair.student.requires_grad_(False)
    objective(mixture, steps=(3,))(pair, batch, 0)[0].backward()
    alone = [p.grad.clone() for p in pair.fake.parameters() if p.grad is not None]
    pair.zero_grad()
    pair.student.requires_grad_(True)
    objective(mixture, steps=(3,))(pair, batch, 0)[0].backward()
    assert alone
    assert all(torch.equal(p.grad, g) for p, g in zip(pair.fake.parameters(), alone, strict=True) if p.grad is not None)
    pair.fake.requires_grad_(False)
    student = [p.grad.clone() for p in pair.student.parameters() if p.grad is not None]
    pair.zero_grad()
    objective(mixture, steps=(3,))(pair, batch, 0)[0].backward()
    assert all(
        torch.equal(p.grad, g) for p, g in zip(pair.student.parameters(), student, strict=True) if p.grad is not None
    )


def test_guidance_is_folded_into_the_target():
    def teacher(x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        image = torch.tensor([3.0, 0.0]) * cond.states[:, 0]  # words ask for (3, 0), none for the origin
        return (x - image) / t[:, None]

    x, t = torch.zeros(2, 2), torch.full((2,), 0.5)
    for guidance in (0.0, 2.0):
        target = objective(teacher, guidance=guidance)._real(x, t, text(["a", "a"]), [(1, 1)] * 2)
        torch.testing.assert_close(target, torch.tensor([[3.0 * (1 + guidance), 0.0]] * 2))


def test_only_a_pair_can_be_distilled():
    with pytest.raises(ValueError, match="not a Scaled"):
        objective(mixture)(Scaled(1.0), next(iter(Prompts(1))), 0)


def test_the_student_is_trained_on_its_own_states():
    states: list[tuple[Tensor, float]] = []

    class Watched(Scaled):
        def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
            states.append((x.detach(), t[0].item()))
            return super().forward(x, t, cond, grids)

    batch, ladder, lengths = next(iter(Prompts(4))), timesteps(8, 0.0), set()
    for step in range(30):
        states.clear()
        objective(mixture, steps=(8,))(Pair(Watched(0.3), Scaled(0.3)), batch, step)
        lengths.add(len(states))
        assert [t for _, t in states] == pytest.approx(ladder[: len(states)])
        with torch.no_grad():
            expected = euler(Scaled(0.3), states[0][0], text(["a"] * 4), [(1, 1)] * 4, ladder[: len(states)])
        torch.testing.assert_close(states[-1][0], expected)
    assert lengths == set(range(1, 9))
