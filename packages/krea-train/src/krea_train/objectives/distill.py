"""Few-step distillation along the student's own trajectory, with guidance folded in (TDM, arXiv 2503.06674).

The student makes K Euler steps. After one of them its state is noised again to a later time inside the segment just
passed; there a frozen teacher and a fake model, which follows the student's own distribution, disagree about the clean
image, and the student's estimate moves by that disagreement. No images are needed, only prompts.

Two differences from the paper. Times are those of a rectified flow, where the paper is variance preserving. And the
fake model learns by denoising exactly the noise that was added (denoising score matching), in place of regressing the
student's estimate under an importance weight: both agree in the last segment, and only the first is unbiased in the
others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from krea_model.flow import clean, timesteps
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.packing import image_mean, per_token
from torch import Tensor, nn

from krea_train.interfaces import Batch
from krea_train.objectives.flow import captions
from krea_train.random import normals, uniforms

__all__ = ["Distillation", "Pair", "fake_loss", "renoise"]

HUBER = 1e-3


class Pair(nn.Module):
    """The student and the fake model, both beginning as copies of the teacher; what the optimizer is given."""

    def __init__(self, student: nn.Module, fake: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.fake = fake


def renoise(x: Tensor, noise: Tensor, start: Tensor | float, t: Tensor) -> Tensor:
    """Noise a state of time `start` on to time t >= start: alpha x + b noise; t broadcasts.

    alpha = (1 - t) / (1 - start), b^2 = t^2 - (alpha start)^2, so that a state of the flow stays one.
    """
    alpha, b = _coefficients(start, t)
    return alpha * x + b * noise


def _coefficients(start: Tensor | float, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha = (1 - t) / (1 - start)
    return alpha, (t.square() - (alpha * start).square()).clamp(min=0).sqrt()


def fake_loss(v: Tensor, x: Tensor, noise: Tensor, start: Tensor | float, t: Tensor) -> Tensor:
    """Squared error, elementwise, of a velocity v at the re-noised state; x is the state before, at time `start`.

    The score of the re-noised distribution is -E[noise] / b, and a velocity implies the noise estimate
    (b / t) (x_t + (1 - t) v). Dividing its error by 1 - t gives flow matching itself when start = 0.
    """
    _, b = _coefficients(start, t)
    ratio = b / t
    target = noise * (1 + (1 - t) * (start / (1 - start)) ** 2 / t) - ratio * x / (1 - start)
    return (ratio * v - target).square()


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """Loss of student and fake model in one: neither sends gradients to the other. An `Objective` for a `Pair`.

    grids: token grid of each image of a batch; features: width of a token. steps: the step counts to learn, one drawn
    per batch. guidance: the teacher's, 0 for none. Metrics: both losses.
    """

    teacher: Velocity
    text: Callable[[Sequence[str]], Conditioning]
    grids: Callable[[Batch], Grids]
    features: int
    seed: int
    steps: tuple[int, ...] = (8,)
    mu: float = 1.15
    guidance: float = 0.0
    caption_mix: Mapping[str, float] = field(default_factory=lambda: {"short": 1.0, "medium": 1.0, "long": 1.0})

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(model, Pair):
            raise ValueError(f"distillation trains a Pair of student and fake model, not a {type(model).__name__}")
        grids, ids = self.grids(batch), batch.ids
        cond = self.text(captions(batch, self.caption_mix, 0.0, self.seed, step))
        device = cond.states.device
        start, t, x = self._roll(model.student, cond, grids, ids, step)
        clock = torch.full((len(ids),), start, device=device)
        v = model.student(x, clock, cond, grids)
        estimate, state = clean(x, v, start), (x + (t - start) * v).detach()

        share = uniforms(self.seed, "again", step, ids).float().to(device)
        clock = t + (start - t) * share
        later = per_token(clock, grids)
        noise = self._noise("again", grids, ids, step).to(device)
        again = renoise(state, noise, t, later)
        believed = model.fake(again, clock, cond, grids)
        move, scale = self._move(again, clock, believed.detach(), cond, grids)
        error = (estimate - (estimate + move).detach()).square()
        scale = image_mean((estimate.detach() - scale).abs(), grids).clamp(min=1e-6)
        losses = image_mean((error + HUBER**2).sqrt() - HUBER, grids) / scale
        fakes = image_mean(fake_loss(believed.float(), state, noise, t, later), grids)
        student, fake = losses.mean(), fakes.mean()
        return student + fake, {"loss": student.detach(), "loss_fake": fake.detach()}

    def _roll(
        self, student: nn.Module, cond: Conditioning, grids: Grids, ids: Sequence[str], step: int
    ) -> tuple[float, float, Tensor]:
        """The student's own state before a random one of its steps: the times of that step, and the state `s f`."""
        which, where = uniforms(self.seed, "segment", step, ["steps", "index"]).tolist()
        count = self.steps[int(which * len(self.steps))]
        ladder = timesteps(count, self.mu)
        x = self._noise("noise", grids, ids, step).to(cond.states.device)
        index = int(where * count)
        with torch.no_grad():
            for t, after in pairwise(ladder[: index + 1]):
                x = x + (after - t) * student(x, torch.full((len(ids),), t, device=x.device), cond, grids)
        return ladder[index], ladder[index + 1], x

    def _noise(self, stream: str, grids: Grids, ids: Sequence[str], step: int) -> Tensor:
        rows = zip(ids, grids, strict=True)
        return torch.cat([normals(self.seed, stream, step, [i], (h * w, self.features))[0] for i, (h, w) in rows])

    @torch.no_grad()
    def _move(self, x: Tensor, t: Tensor, believed: Tensor, cond: Conditioning, grids: Grids) -> tuple[Tensor, Tensor]:
        """How the clean image should move, and the guided teacher's clean image; both `s f`, fp32."""
        later = per_token(t, grids)
        real = clean(x, self.teacher(x, t, cond, grids).float(), later)
        guided = real
        if self.guidance:
            without = clean(x, self.teacher(x, t, self.text([""] * len(t)), grids).float(), later)
            guided = real + self.guidance * (real - without)
        return guided - clean(x, believed.float(), later), guided
