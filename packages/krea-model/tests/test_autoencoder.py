import importlib
import sys

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from krea_model.autoencoder import QwenImageAutoencoder, load
from krea_model.interfaces import Autoencoder

MEAN, STD = [0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 2.0, 1.0]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLQwenImage:
    torch.manual_seed(0)
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=MEAN,
        latents_std=STD,
    ).eval()


def test_encoding_and_decoding_are_the_formulas_around_diffusers(vae):
    autoencoder: Autoencoder = QwenImageAutoencoder(vae)
    assert (autoencoder.compression, autoencoder.channels) == (4, 4)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = torch.tensor(MEAN).view(1, 4, 1, 1), torch.tensor(STD).view(1, 4, 1, 1)
    with torch.no_grad():
        raw = vae.encode(images[:, :, None]).latent_dist.mode()[:, :, 0]
        latents = autoencoder.encode(images)
        assert latents.shape == (2, 4, 4, 6)
        assert torch.allclose(latents, (raw - mean) / std, atol=1e-6)
        want = vae.decode(raw[:, :, None]).sample[:, :, 0].clamp(-1, 1)
        assert torch.allclose(autoencoder.decode(latents), want, atol=1e-5)
    loud = autoencoder.decode(100 * latents)
    assert loud.abs().max() <= 1


def test_a_generator_draws_from_the_posterior(vae):
    autoencoder = QwenImageAutoencoder(vae)
    images = torch.zeros(1, 3, 8, 8)
    draws = [autoencoder.encode(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    posterior = vae.encode(images[:, :, None]).latent_dist
    unit = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    spread = (posterior.std * unit)[:, :, 0] / torch.tensor(STD).view(1, 4, 1, 1)
    assert torch.allclose(draws[0] - autoencoder.encode(images), spread, atol=1e-5)


def test_it_loads_from_its_folder_and_from_a_pipeline_folder(vae, tmp_path):
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    want = QwenImageAutoencoder(vae).encode(images)
    for path in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
        assert torch.equal(load(path).encode(images), want)
    assert load(tmp_path / "pipeline", torch.bfloat16).decode(want).dtype == torch.float32
    with pytest.raises(ValueError, match="holds no autoencoder"):
        load(tmp_path)


def test_sizes_that_do_not_divide_are_an_error(vae):
    with pytest.raises(ValueError, match="10x12 pixels is no multiple of 4"):
        QwenImageAutoencoder(vae).encode(torch.zeros(1, 3, 10, 12))


def test_released_statistics_are_the_defaults():
    with torch.device("meta"):
        released = QwenImageAutoencoder(AutoencoderKLQwenImage())
    assert (released.compression, released.channels) == (8, 16)
    assert sum(p.numel() for p in released.vae.parameters()) == 126_892_531


def test_without_diffusers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl_qwenimage", None)
    monkeypatch.delitem(sys.modules, "krea_model.autoencoder")
    with pytest.raises(ImportError, match=r"krea-model\[vae\]"):
        importlib.import_module("krea_model.autoencoder")
