"""Few-step distillation along the student's own trajectory, with guidance folded in (TDM, arXiv 2503.06674).

The student makes K Euler steps. After one of them its state is noised again to a later time inside the segment just
passed; there a frozen teacher and a fake model, which follows the student's own distribution, disagree about the clean
image, and the student's estimate moves by that disagreement. No images are needed, only prompts.

The paper is variance preserving; here are the times of a rectified flow. The re-noised state lies on the line from the
student's estimate to a blend of the noise that the student's state implies and fresh noise, so that the fake model is
trained by plain flow matching between the two.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from krea_model.flow import clean, mix, timesteps, velocity
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.packing import image_mean, per_token
from torch import Tensor, nn

from krea_train.interfaces import Batch
from krea_train.objectives.flow import captions
from krea_train.random import normals, uniforms

__all__ = ["Distillation", "Pair", "blend"]

HUBER = 1e-3


class Pair(nn.Module):
    """The student and the fake model, both beginning as copies of the teacher; what the optimizer is given."""

    def __init__(self, student: nn.Module, fake: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.fake = fake


def blend(implied: Tensor, fresh: Tensor, start: float, t: Tensor) -> Tensor:
    """Noise of a state of time `start` that is noised on to t >= start: the implied at t = start, later less of it.

    The state at t is alpha x + b fresh with alpha = (1 - t) / (1 - start) and b^2 = t^2 - (alpha start)^2, so that a
    state of the flow stays one; its noise (alpha start implied + b fresh) / t has variance 1 if both do. t broadcasts.
    """
    kept = (1 - t) / (1 - start) * start / t
    return kept * implied + (1 - kept.square()).clamp(min=0).sqrt() * fresh


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """Loss of student and fake model in one: neither sends gradients to the other. An `Objective` for a `Pair`.

    grids: token grid of each image of a batch; features: width of a token. steps: the step counts to learn, one drawn
    per batch. guidance: the teacher's, 0 for none. Metrics: both losses. The fake model must keep up with the student:
    give it about five times the student's learning rate.
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
        v = model.student(x, torch.full((len(ids),), start, device=device), cond, grids).float()
        estimate, implied = clean(x, v, start), (x + (1 - start) * v).detach()
        final = estimate.detach()

        share = uniforms(self.seed, "again", step, ids).float().to(device)
        clock = (t + (start - t) * share).clamp(min=1e-6)
        later = per_token(clock, grids)
        fresh = self._noise("again", grids, ids, step).to(device)
        noise = blend(implied, fresh, t, later)
        again = mix(final, noise, later)
        believed = model.fake(again, clock, cond, grids).float()
        weight = torch.exp(0.5 * (image_mean(fresh.square(), grids) - image_mean(noise.square(), grids)))
        fakes = weight * image_mean((believed - velocity(final, noise)).square(), grids)

        real = self._real(again, clock, cond, grids)
        move = real - clean(again, believed.detach(), later)
        error = (estimate - (final + move)).square()
        scale = image_mean((final - real).abs(), grids).clamp(min=1e-6)
        students = image_mean((error + HUBER**2).sqrt() - HUBER, grids) / scale
        student, fake = students.mean(), fakes.mean()
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
    def _real(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        """The guided teacher's clean image, `s f`, fp32."""
        later = per_token(t, grids)
        real = clean(x, self.teacher(x, t, cond, grids).float(), later)
        if not self.guidance:
            return real
        without = clean(x, self.teacher(x, t, self.text([""] * len(t)), grids).float(), later)
        return real + self.guidance * (real - without)
