from types import SimpleNamespace

import pytest
import torch
from diffusers.pipelines.krea2.pipeline_krea2 import Krea2Pipeline
from hypothesis import given
from hypothesis import strategies as st
from krea_model.interfaces import Conditioning
from krea_model.packing import image_mean, level, pack, per_token, unpack
from krea_model.testing import tiny_model

SIDES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


@given(sides=SIDES, patch=st.integers(1, 3), channels=st.integers(1, 3))
def test_unpacking_inverts_packing_for_any_mixture_of_sizes(sides, patch, channels):
    latents = [torch.randn(channels, h * patch, w * patch) for h, w in sides]
    tokens, grids = pack(latents, patch)
    assert grids == sides
    assert tokens.shape == (sum(h * w for h, w in sides), channels * patch**2)
    back = unpack(tokens, grids, patch)
    assert all(torch.equal(a, b) for a, b in zip(latents, back, strict=True))


def test_the_order_of_features_is_that_of_diffusers():
    latents = torch.randn(2, 16, 6, 10, generator=torch.Generator().manual_seed(0))
    pipeline = SimpleNamespace(patch_size=2)
    want = Krea2Pipeline._pack_latents(pipeline, latents, 2, 16, 6, 10)  # pyright: ignore[reportArgumentType]
    tokens, grids = pack(latents)
    assert torch.equal(tokens, want.flatten(0, 1))
    assert grids == [(3, 5), (3, 5)]


def test_a_latent_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="5x4 does not divide into 2x2"):
        pack([torch.zeros(4, 5, 4)])


def test_values_per_image_go_to_its_tokens_and_means_come_back():
    grids = [(1, 2), (3, 1)]
    values = torch.tensor([0.25, 0.5])
    spread = per_token(values, grids)
    assert spread.tolist() == [[0.25], [0.25], [0.5], [0.5], [0.5]]
    assert torch.equal(image_mean(spread.expand(-1, 7), grids), values)
    tokens = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(image_mean(tokens, grids), torch.stack([tokens[:2].mean(), tokens[2:].mean()]))


@pytest.mark.parametrize("extra", [0, 7])
def test_a_levelled_batch_has_whole_blocks_of_tokens_and_the_same_velocity(extra):
    model = tiny_model()
    lengths, grids = (3, 16 - extra, 5), [(2, 4), (4, 4), (2, 8)]
    states = torch.randn(sum(lengths), model.config.txtlayers, model.config.txtdim)
    cond, t = Conditioning(states, lengths), torch.tensor([0.1, 0.5, 0.9])
    x = torch.randn(40, model.config.token_features)
    new_t, new_cond, new_grids = level(t, cond, grids, 64)
    assert (sum(new_cond.lengths) + 40) % 64 == 0
    assert (len(new_t), len(new_grids)) == ((3, 3) if not extra else (4, 4))
    ours, theirs = model(x, new_t, new_cond, new_grids), model(x, t, cond, grids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for one, other in zip(*(torch.autograd.grad(v.square().mean(), parameters) for v in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
