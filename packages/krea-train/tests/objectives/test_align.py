from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from krea_model.configs import tiny
from krea_model.mmdit import MMDiT
from krea_train import AdamW, Alignment, Average, FlowMatching, Optimizer
from krea_train.average import constant
from krea_train.interfaces import Batch
from krea_train.objectives.align import attach, detach, spatial_norm
from krea_train.testing import Squares, WordStates, pixels
from torch import Tensor

WIDTH = 5
BATCH = Squares().batch([0, 5, 10], ["a", "b", "c"])


def net() -> MMDiT:
    torch.manual_seed(0)
    return MMDiT(replace(tiny(), channels=3))


def features(batch: Batch) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(len(batch.ids), WIDTH, 8, 8, generator=generator)


def objective(**changes: object) -> Alignment:
    flow = FlowMatching(latents=pixels, text=WordStates(), seed=1)
    return replace(Alignment(flow=flow, features=features, depth=2), **changes)  # type: ignore[arg-type]


def test_spatial_norm_by_hand():
    y = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])  # mean 3, unbiased std sqrt(14 / 3)
    expected = (y - 0.6 * 3) / (14 / 3) ** 0.5
    torch.testing.assert_close(spatial_norm(y, 0.6), expected, rtol=0, atol=1e-5)


def test_spatial_norm_at_its_ends():
    y = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(0)) * 5 + 2
    whole = spatial_norm(y, 1.0)
    torch.testing.assert_close(whole.mean((-2, -1)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.std((-2, -1)), torch.ones(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(spatial_norm(y, 0.0), y / y.std((-2, -1), keepdim=True), rtol=0, atol=1e-5)
    assert torch.equal(spatial_norm(torch.full((1, 2, 2), 3.0), 1.0), torch.zeros(1, 2, 2))


def test_the_loss_is_flow_minus_cosine_of_the_blocks_image_tokens():
    model, found = net(), []
    attach(model, WIDTH)
    model.blocks[1].register_forward_hook(lambda _, __, out: found.append(out))
    align = objective(weight=0.5)
    loss, metrics = align(model, BATCH, 0)
    example = align.flow.example(BATCH, 0)
    flow_loss, _ = align.flow(model, BATCH, 0)
    cosines, start = [], 0
    for i, text in enumerate(example.cond.lengths):
        tokens = found[0][start + text : start + text + 64]
        projected = model.get_submodule("align")(tokens.T.reshape(1, -1, 8, 8))[0]
        cosines.append(F.cosine_similarity(projected, spatial_norm(features(BATCH)[i], 0.6), dim=0).mean())
        start += text + 64
    mean = torch.stack(cosines).mean()
    torch.testing.assert_close(metrics["alignment"], mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss, flow_loss - 0.5 * mean, rtol=0, atol=1e-6)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert grads["align.weight"] is not None
    assert grads["blocks.0.attn.wq.weight"] is not None


def test_mixed_grids_equal_one_image_at_a_time():
    model = net()
    attach(model, WIDTH)
    latents = [torch.randn(3, h, w, generator=torch.Generator().manual_seed(h)) for h, w in ((4, 8), (6, 6), (8, 4))]
    maps = [torch.randn(WIDTH, h, w, generator=torch.Generator().manual_seed(h)) for h, w in ((2, 4), (5, 5), (4, 2))]

    def run(rows: list[int]) -> Tensor:
        batch = Squares().batch([0] * len(rows), [f"{i}" for i in rows])
        flow = FlowMatching(latents=lambda *_: [latents[i] for i in rows], text=WordStates(), seed=1, drop=0.0)
        align = Alignment(
            flow=replace(flow, caption_mix={"short": 1.0}), features=lambda _: [maps[i] for i in rows], depth=1
        )
        return align(model, batch, 0)[1]["alignment"]

    def fixed(rows: list[int]) -> Tensor:  # times are drawn per batch; a fixed time makes batches comparable
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("krea_train.objectives.flow.times", lambda *_, **__: torch.full((len(rows),), 0.5))
            return run(rows)

    one_by_one = torch.stack([fixed([i]) for i in range(3)]).mean()
    torch.testing.assert_close(fixed([0, 1, 2]), one_by_one, rtol=0, atol=1e-6)


def test_after_detaching_nothing_of_it_is_left():
    model = net()
    keys = set(model.state_dict())
    plain = set(Optimizer(net(), AdamW(lr=0.1)).state)
    attach(model, WIDTH)
    assert set(model.state_dict()) - keys == {"align.weight", "align.bias"}
    optimizer, average = Optimizer(model, AdamW(lr=0.1)), Average(model, constant(0.9))
    objective()(model, BATCH, 0)[0].backward()
    optimizer.step()
    prefix = detach(model)
    optimizer.drop(prefix)
    average.drop(prefix)
    assert set(model.state_dict()) == set(average.state_dict()) == keys
    assert set(optimizer.state) == plain
    fresh = Optimizer(net(), AdamW(lr=0.1))
    fresh.load_state_dict(optimizer.state_dict())
    objective().flow(model, BATCH, 0)[0].backward()
    optimizer.step()


@pytest.mark.parametrize("depth", [0, 3])
def test_a_missing_projector_or_block_is_named(depth: int):
    with pytest.raises(ValueError, match="call attach"):
        objective()(net(), BATCH, 0)
    model = net()
    attach(model, WIDTH)
    with pytest.raises(ValueError, match=f"alignment at block {depth}"):
        objective(depth=depth)(model, BATCH, 0)
