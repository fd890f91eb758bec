from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_model.autoencoder import QwenImageAutoencoder
from krea_model.smallae import Sizes, SmallAutoencoder
from krea_model.testing import FakeAutoencoder
from krea_model.tiling import TILING, Tiling, decode, tiled
from torch import Tensor, nn


def latents(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Blur(nn.Module):
    """A decoder that sees exactly `reach` latent positions in every direction, and zeros beyond the edge."""

    def __init__(self, reach: int, compression: int) -> None:
        super().__init__()
        torch.manual_seed(reach)
        self.mix = nn.Conv2d(2, 3 * compression**2, 2 * reach + 1, padding=reach)
        self.grow = nn.PixelShuffle(compression)

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        return self.grow(self.mix(z))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    overlap=st.integers(1, 8),
    more=st.integers(0, 9),
    compression=st.sampled_from([1, 2, 4]),
)
def test_a_decoder_that_sees_a_quarter_of_the_overlap_gives_the_whole_picture(
    rows, columns, overlap, more, compression
):
    blur = Blur(overlap // 4, compression)
    z = latents(2, 2, rows, columns)
    got = tiled(blur, z, 2 * overlap + more, overlap, compression)
    assert got.shape == (2, 3, rows * compression, columns * compression)
    assert (got - blur(z)).abs().max() <= 1e-6 * blur(z).abs().max()


def test_one_that_sees_further_differs_and_only_around_the_seam():
    blur, z = Blur(5, 2), latents(1, 2, 8, 40)
    wrong = (tiled(blur, z, 24, 8, 2) - blur(z)).abs().amax((0, 1, 2)) > 1e-5
    assert wrong.any()
    assert not wrong[: 2 * (20 - 4)].any()
    assert not wrong[2 * (20 + 4) :].any()


def test_the_seam_of_a_real_decoder_is_fainter_than_in_diffusers():
    """Qwen-Image's sees the whole tile, by attention: some difference stays, but no step where tiles meet."""
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    z = latents(1, 4, 24, 96)
    alone = QwenImageAutoencoder(vae, tiling=None)
    whole, halves = alone.decode(z), torch.cat([alone.decode(half) for half in z.chunk(2, 3)], 3)
    ours = QwenImageAutoencoder(vae, tiling=Tiling(above_px=0, side_px=4 * 48, overlap_px=4 * 16)).decode(z)
    vae.enable_tiling(4 * 48, 4 * 48, 4 * 32, 4 * 32)
    theirs = alone.decode(z)
    worst = {}
    for name, picture in {"ours": ours, "diffusers": theirs, "unblended": halves}.items():
        worst[name] = float((picture - whole).diff(dim=3).abs().mean((0, 1, 2)).max())  # the strongest column
    assert worst["ours"] < worst["diffusers"]
    assert worst["ours"] < 0.1 * worst["unblended"]
    assert worst["ours"] < 0.15 * whole.diff(dim=3).abs().mean()


def test_every_autoencoder_can_be_tiled():
    small = SmallAutoencoder(Sizes(channels=4, width=8, depth=1)).eval()
    z = latents(1, 4, 40, 30)
    assert (tiled(small.decode, z, 40, 20, 4) - small.decode(z)).abs().max() <= 1e-6  # it sees 4 positions
    fake = FakeAutoencoder()
    z = latents(2, fake.channels, 9, 13)
    assert torch.allclose(tiled(fake.decode, z, 4, 2, 4), fake.decode(z), atol=1e-6)


def largest(module: nn.Module, run: Any) -> int:
    """Values in the largest activation of any part of a model while `run()` runs."""
    seen = [0]

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append(output.numel())

    hooks = [part.register_forward_hook(note) for part in module.modules()]
    run()
    for hook in hooks:
        hook.remove()
    return max(seen)


def test_the_largest_activation_is_that_of_a_tile_however_large_the_picture():
    small = SmallAutoencoder(Sizes(channels=4, width=8, depth=1)).eval()
    seen = {
        side: largest(small, lambda side=side: tiled(small.decode, latents(2, 4, side, side), 16, 8, 4))
        for side in (16, 40, 64)
    }
    assert seen[16] == seen[40] == seen[64] == 3 * (16 * 4) ** 2
    assert largest(small, lambda: small.decode(latents(1, 4, 64, 64))) == 16 * seen[64]


def test_tiles_are_used_above_a_number_of_pixels_and_never_if_turned_off():
    calls: list[tuple[int, ...]] = []

    def whole(z: Tensor) -> Tensor:
        calls.append(tuple(z.shape))
        return torch.zeros(len(z), 3, 8 * z.shape[2], 8 * z.shape[3])

    for shape, tiling, expected in [
        ((1, 1, 192, 192), TILING, [(1, 1, 192, 192)]),
        ((5, 1, 128, 128), TILING, [(2, 1, 128, 128), (2, 1, 128, 128), (1, 1, 128, 128)]),
        ((2, 1, 193, 192), TILING, [(1, 1, 113, 192), (1, 1, 113, 192)] * 2),
        ((1, 1, 256, 256), TILING, [(1, 1, 144, 144)] * 4),
        ((1, 1, 64, 1024), TILING, [(1, 1, 64, 174)] * 7),
        ((4, 1, 256, 256), None, [(4, 1, 256, 256)]),
        ((1, 1, 40, 40), Tiling(above_px=0, side_px=256, overlap_px=64), [(1, 1, 24, 24)] * 4),
    ]:
        calls.clear()
        out = decode(whole, torch.zeros(shape), 8, tiling)
        assert calls == expected
        assert out.shape == (shape[0], 3, 8 * shape[2], 8 * shape[3])


def test_settings_that_cannot_work_are_errors():
    for wrong in ({"overlap_px": 0}, {"overlap_px": 800}, {"above_px": -1}):
        with pytest.raises(ValueError, match="overlap_px must be at least 1 and at most half of side_px"):
            Tiling(**wrong)
    for tile, overlap in ((8, 0), (8, 5)):
        with pytest.raises(ValueError, match="it must be 1 to half of that"):
            tiled(FakeAutoencoder().decode, latents(1, 48, 9, 9), tile, overlap, 4)
    with pytest.raises(ValueError, match="hold no picture"):
        tiled(FakeAutoencoder().decode, latents(0, 48, 9, 9), 8, 4, 4)
