import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl, autoencoder_kl_flux2
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from krea_model.autoencoder import load
from krea_model.flux_autoencoder import Flux1Autoencoder, Flux2Autoencoder
from krea_model.interfaces import Autoencoder
from krea_model.packing import pack, unpack
from krea_model.tiling import Tiling
from safetensors.torch import load_file

AutoencoderKL: Any = autoencoder_kl.AutoencoderKL  # their annotations fit neither their defaults nor their results
AutoencoderKLFlux2: Any = autoencoder_kl_flux2.AutoencoderKLFlux2

SIZES: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def flux1() -> Any:
    torch.manual_seed(0)
    flags = {"use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(**SIZES, **flags, shift_factor=0.1159, scaling_factor=0.3611).eval()


@pytest.fixture(scope="module")
def flux2() -> Any:
    """Random weights, and statistics such as training leaves: none of them 0 or 1."""
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(**SIZES, batch_norm_eps=0.01).eval()
    vae.bn.running_mean.normal_(0, 0.7)
    vae.bn.running_var.uniform_(0.05, 4)
    return vae


def encoded_by_diffusers(pipeline: Any, vae: Any, images: torch.Tensor) -> torch.Tensor:
    """What a pipeline of diffusers makes of a picture to start from; a posterior without noise."""
    owner = SimpleNamespace(vae=vae, _patchify_latents=Flux2Pipeline._patchify_latents)
    with torch.no_grad():
        return pipeline._encode_vae_image(owner, images, None)


def test_flux1_is_encoded_and_decoded_by_the_formulas_of_its_pipeline(flux1):
    autoencoder: Autoencoder = Flux1Autoencoder(flux1)
    assert (autoencoder.compression, autoencoder.channels) == (4, 4)
    images = pictures(2, 3, 16, 24)
    with torch.no_grad():
        posterior = flux1.encode(images).latent_dist
        sharp = SimpleNamespace(config=flux1.config, encode=lambda _: SimpleNamespace(latents=posterior.mode()))
        latents = autoencoder.encode(images)
        assert latents.shape == (2, 4, 4, 6)
        assert torch.allclose(latents, encoded_by_diffusers(FluxImg2ImgPipeline, sharp, images), atol=1e-6)
        want = flux1.decode(latents / 0.3611 + 0.1159).sample
        assert torch.allclose(autoencoder.decode(latents), want.clamp(-1, 1), atol=1e-6)
        assert torch.allclose(
            autoencoder.decode(latents), flux1.decode(posterior.mode()).sample.clamp(-1, 1), atol=1e-5
        )


def test_flux2_is_encoded_and_decoded_by_the_formulas_of_its_pipeline(flux2):
    autoencoder: Autoencoder = Flux2Autoencoder(flux2)
    assert (autoencoder.compression, autoencoder.channels) == (4, 4)
    images = pictures(2, 3, 16, 24)
    latents = autoencoder.encode(images)
    assert latents.shape == (2, 4, 4, 6)
    theirs = encoded_by_diffusers(Flux2Pipeline, flux2, images)
    assert torch.allclose(Flux2Pipeline._patchify_latents(latents), theirs, atol=1e-5)

    mean = flux2.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(flux2.bn.running_var.view(1, -1, 1, 1) + flux2.config.batch_norm_eps)
    with torch.no_grad():
        want = flux2.decode(Flux2Pipeline._unpatchify_latents(theirs * std + mean)).sample.clamp(-1, 1)
        straight = flux2.decode(flux2.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    assert torch.allclose(autoencoder.decode(latents), want, atol=1e-5)
    assert torch.allclose(autoencoder.decode(latents), straight, atol=1e-5)


def test_tokens_are_those_of_flux2_and_come_back(flux2):
    autoencoder = Flux2Autoencoder(flux2)
    images = pictures(2, 3, 16, 24)
    latents = autoencoder.encode(images)
    tokens, grids = pack(latents)
    assert grids == [(2, 3)] * 2
    theirs = Flux2Pipeline._pack_latents(encoded_by_diffusers(Flux2Pipeline, flux2, images))
    assert torch.allclose(tokens, theirs.flatten(0, 1), atol=1e-5)
    assert torch.equal(autoencoder.decode(torch.stack(unpack(tokens, grids))), autoencoder.decode(latents))


def test_statistics_of_flux2_normalise_what_they_were_taken_from(flux2):
    """Mean 0 and variance 1 in every channel of a patch, for a corpus whose statistics the batch norm holds."""
    corpus = pictures(64, 3, 16, 16)
    with torch.no_grad():
        patches = Flux2Pipeline._patchify_latents(flux2.encode(corpus).latent_dist.mode())
    sizes = {key: value for key, value in flux2.config.items() if not key.startswith("_")}
    own = AutoencoderKLFlux2(**(sizes | {"batch_norm_eps": 0.0})).eval()
    own.load_state_dict(flux2.state_dict())
    own.bn.running_mean.copy_(patches.mean((0, 2, 3)))
    own.bn.running_var.copy_(patches.var((0, 2, 3), correction=0))
    tokens = pack(Flux2Autoencoder(own).encode(corpus))[0]
    assert tokens.mean(0).abs().max() < 1e-4
    assert (tokens.std(0, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["flux1", "flux2"])
def test_a_generator_draws_from_the_posterior(kind, flux1, flux2):
    autoencoder: Any = Flux1Autoencoder(flux1) if kind == "flux1" else Flux2Autoencoder(flux2)
    images = pictures(1, 3, 16, 16)
    draws = [autoencoder.encode(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with torch.no_grad():
        posterior = autoencoder.vae.encode(images).latent_dist
    unit = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    spread = posterior.std * unit
    if kind == "flux1":
        spread = spread * 0.3611
    else:
        std = torch.sqrt(flux2.bn.running_var.view(1, -1, 1, 1) + flux2.config.batch_norm_eps)
        spread = Flux2Pipeline._unpatchify_latents(Flux2Pipeline._patchify_latents(spread) / std)
    assert torch.allclose(draws[0] - autoencoder.encode(images), spread, atol=1e-5)


def test_they_load_by_the_class_in_their_config(flux1, flux2, tmp_path):
    images = pictures(1, 3, 16, 16)
    flux1.save_pretrained(tmp_path / "one" / "vae")
    flux2.save_pretrained(tmp_path / "two")
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert isinstance(one, Flux1Autoencoder)
    assert isinstance(two, Flux2Autoencoder)
    assert torch.equal(one.encode(images), Flux1Autoencoder(flux1).encode(images))
    assert torch.equal(two.encode(images), Flux2Autoencoder(flux2).encode(images))


def test_statistics_among_the_weights_are_not_rounded_with_them(flux2, tmp_path):
    flux2.save_pretrained(tmp_path)
    half: Any = load(tmp_path, torch.bfloat16)
    assert half.vae.dtype == torch.bfloat16
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")["bn.running_mean"]
    assert not torch.equal(stored.bfloat16().float(), stored)
    latents = pictures(1, 4, 4, 4)
    raw = Flux2Pipeline._patchify_latents(latents) * torch.sqrt(flux2.bn.running_var.view(1, -1, 1, 1) + 0.01)
    raw = Flux2Pipeline._unpatchify_latents(raw + stored.view(1, -1, 1, 1)).bfloat16()
    with torch.no_grad():
        want = half.vae.decode(raw).sample.float().clamp(-1, 1)
    got = half.decode(latents)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_large_pictures_are_decoded_in_tiles(flux1, flux2):
    tiling = Tiling(above_px=0, side_px=4 * 32, overlap_px=4 * 16)
    for kind, vae in ((Flux1Autoencoder, flux1), (Flux2Autoencoder, flux2)):
        seen = []
        latents = torch.randn(1, 4, 48, 40, generator=torch.Generator().manual_seed(0))
        whole = kind(vae, tiling=None).decode(latents)
        hook = vae.decoder.register_forward_hook(lambda _m, inputs, _out, seen=seen: seen.append(inputs[0].shape[-2:]))
        tiled = kind(vae, tiling=tiling).decode(latents)
        hook.remove()
        assert len(seen) == 4
        assert max(max(shape) for shape in seen) <= 32
        assert (tiled - whole).square().mean() < 0.01 * whole.var()


def test_bad_input_is_an_error(flux1, flux2):
    with pytest.raises(ValueError, match="18x16 pixels is no multiple of 4"):
        Flux1Autoencoder(flux1).encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(ValueError, match="20x16 pixels is no multiple of 8"):
        Flux2Autoencoder(flux2).encode(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ValueError, match="5x4 do not divide into 2x2 patches"):
        Flux2Autoencoder(flux2).decode(torch.zeros(1, 4, 5, 4))
    for autoencoder in (Flux1Autoencoder(flux1), Flux2Autoencoder(flux2)):
        with pytest.raises(ValueError, match="latents hold NaN or infinity in 64 of 64 values"):
            autoencoder.decode(torch.full((1, 4, 4, 4), torch.nan))


def test_without_diffusers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl_flux2", None)
    monkeypatch.delitem(sys.modules, "krea_model.flux_autoencoder")
    with pytest.raises(ImportError, match=r"krea-model\[vae\]"):
        importlib.import_module("krea_model.flux_autoencoder")


def test_released_sizes():
    with torch.device("meta"):
        one = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16,
        )
        two = AutoencoderKLFlux2()
    assert (Flux1Autoencoder(one).compression, Flux1Autoencoder(one).channels) == (8, 16)
    assert (Flux2Autoencoder(two).compression, Flux2Autoencoder(two).channels) == (8, 32)
