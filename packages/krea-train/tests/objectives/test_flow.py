import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from krea_model.configs import tiny
from krea_model.flow import clean
from krea_model.interfaces import Conditioning, Grids
from krea_model.mmdit import MMDiT
from krea_model.packing import pack, per_token
from krea_train.objectives.flow import FlowMatching, by_time, captions, times
from krea_train.testing import SquareBatch, Squares, WordStates, pixels
from torch import Tensor, nn

BATCH = Squares().batch(list(range(8)), [f"id-{i}" for i in range(8)])


class Constant(nn.Module):
    """Predicts the same everywhere."""

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        return torch.zeros_like(x)


def flow(**changes: object) -> FlowMatching:
    return replace(FlowMatching(latents=pixels, text=WordStates(), seed=1), **changes)  # type: ignore[arg-type]


def take(batch: SquareBatch, rows: Sequence[int]) -> SquareBatch:
    return SquareBatch(
        images=batch.images[list(rows)], captions=[batch.captions[i] for i in rows], ids=[batch.ids[i] for i in rows]
    )


def test_an_example_lies_on_the_line_from_image_to_noise():
    example = flow().example(BATCH, 3)
    image, grids = pack(pixels(BATCH, 3))
    assert example.grids == grids
    torch.testing.assert_close(clean(example.x, example.target, per_token(example.t, grids)), image)
    noise = example.target + image
    assert abs(noise.mean().item()) < 0.05
    assert abs(noise.std().item() - 1) < 0.05


def test_noise_and_caption_follow_the_image_and_not_the_batch():
    whole, part = flow(drop=0.5).example(BATCH, 3), flow(drop=0.5).example(take(BATCH, [6, 2]), 3)
    each = whole.target.unflatten(0, (8, 64))
    assert torch.equal(part.target.unflatten(0, (2, 64)), each[[6, 2]])
    rows = captions(BATCH, {"short": 1.0, "long": 1.0}, 0.5, 1, 3)
    assert captions(take(BATCH, [6, 2]), {"long": 1.0, "short": 1.0}, 0.5, 1, 3) == [rows[6], rows[2]]
    assert not torch.equal(flow().example(BATCH, 4).target, flow().example(BATCH, 3).target)


def test_the_loss_is_a_mean_over_images_whatever_their_size():
    sizes = [(4, 4), (8, 2), (2, 2), (6, 8), (4, 4), (2, 6), (4, 2), (8, 8)]
    latents = [torch.randn(3, h, w, generator=torch.Generator().manual_seed(h * w)) for h, w in sizes]
    objective = flow(latents=lambda batch, step: latents)
    example = objective.example(BATCH, 0)
    loss, metrics = objective(Constant(), BATCH, 0)
    parts = example.target.split([h * w // 4 for h, w in sizes])
    by_hand = torch.stack([part.double().square().mean() for part in parts])
    assert loss.item() == pytest.approx(by_hand.mean().item(), rel=1e-6)
    assert loss.item() != pytest.approx(example.target.square().mean().item(), rel=1e-4)
    assert not metrics["loss"].requires_grad


def test_a_bf16_prediction_is_compared_in_fp32():
    class Half(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
            return torch.full_like(x, 0.1, dtype=torch.bfloat16)

    loss, _ = flow()(Half(), BATCH, 0)
    assert loss.dtype == torch.float32
    expected = (flow().example(BATCH, 0).target - torch.tensor(0.1).bfloat16().float()).square().mean()
    torch.testing.assert_close(loss, expected)


def test_gradients_reach_every_part_of_the_transformer():
    torch.manual_seed(0)
    model = MMDiT(replace(tiny(), channels=3))
    flow()(model, BATCH, 0)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.15])
def test_times_are_shifted_logit_normal(mu: float):
    t = torch.cat([times(3, step, [f"{i}" for i in range(8)], mu=mu) for step in range(250)]).double().sort().values
    cdf = torch.special.ndtr(torch.logit(t) - mu)
    assert (cdf - (torch.arange(len(t)) + 0.5) / len(t)).abs().max() < 1.63 / math.sqrt(len(t))


def test_ranks_share_the_times_of_the_global_batch():
    ids = [f"{i}" for i in range(8)]
    parts = [times(3, 0, ids[i * 4 : i * 4 + 4], mu=0.5, rank=i, ranks=2) for i in range(2)]
    assert torch.equal(torch.cat(parts), times(3, 0, ids, mu=0.5))


def test_captions_follow_the_mix_and_the_drop():
    batch = Squares().batch([0] * 4000, [f"{i}" for i in range(4000)])
    found = Counter(len(c.split()) for c in captions(batch, {"short": 1.0, "medium": 0.0, "long": 3.0}, 0.2, 5, 0))
    assert set(found) == {0, 2, 10}
    assert found[0] / 4000 == pytest.approx(0.2, abs=0.02)
    assert found[10] / found[2] == pytest.approx(3, rel=0.15)


def test_missing_lengths_are_skipped_and_none_at_all_is_an_error():
    batch = SquareBatch(images=torch.zeros(1, 3, 8, 8), captions=[{"long": "a cat", "short": ""}], ids=["cat.png"])
    assert captions(batch, {"short": 5.0, "long": 1.0}, 0.0, 0, 0) == ["a cat"]
    with pytest.raises(ValueError, match=r"'cat\.png' has captions \['long', 'short'\]"):
        captions(batch, {"short": 1.0}, 0.0, 0, 0)


def test_loss_by_time():
    out = by_time(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 1.0]), 4)
    assert list(out) == ["loss_t0.00", "loss_t0.25", "loss_t0.50", "loss_t0.75"]
    assert out["loss_t0.00"] == 2
    assert out["loss_t0.75"] == 5
    assert out["loss_t0.25"].isnan()


def test_a_negative_share_is_refused():
    with pytest.raises(ValueError, match="shares of at least 0"):
        flow(caption_mix={"short": -1.0})
