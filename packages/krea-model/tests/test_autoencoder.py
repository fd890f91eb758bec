import copy
import importlib
import json
import sys
from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from krea_model.autoencoder import QwenImageAutoencoder, load
from krea_model.interfaces import Autoencoder
from krea_model.testing_folder import tiny_autoencoder
from krea_model.tiling import Tiling
from safetensors.torch import load_file, save_file

MEAN, STD = [0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 2.0, 1.0]  # of the tiny one


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLQwenImage:
    torch.manual_seed(0)
    return tiny_autoencoder()


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


def test_folders_that_cannot_be_used_are_errors(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_out.bias"]
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights, first decoder\.conv_out\.bias"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC"}))
    with pytest.raises(ValueError, match="'AutoencoderDC'; the autoencoders known here are AutoencoderKLQwenImage"):
        load(tmp_path)
    torch.save(weights, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no autoencoder"):
        load(tmp_path)


def test_statistics_normalise_what_they_were_taken_from(vae):
    corpus = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        raw = vae.encode(corpus[:, :, None]).latent_dist.mode()[:, :, 0]
    own = copy.deepcopy(vae)
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3), correction=0)
    own.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    latents = QwenImageAutoencoder(own).encode(corpus)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latents.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_tiling_is_used_for_large_pictures_only_and_can_be_turned_off(vae):
    latents = torch.randn(1, 4, 20, 12, generator=torch.Generator().manual_seed(0))
    whole = QwenImageAutoencoder(vae).decode(latents)
    small = Tiling(above_px=20 * 12 * 16, side_px=32, overlap_px=16)
    assert torch.equal(QwenImageAutoencoder(vae, tiling=small).decode(latents), whole)
    tiled = QwenImageAutoencoder(vae, tiling=replace(small, above_px=20 * 12 * 16 - 1)).decode(latents)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert torch.equal(QwenImageAutoencoder(vae, tiling=None).decode(latents), whole)


def test_bad_input_is_an_error(vae):
    autoencoder = QwenImageAutoencoder(vae)
    with pytest.raises(ValueError, match="10x12 pixels is no multiple of 4"):
        autoencoder.encode(torch.zeros(1, 3, 10, 12))
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\); give \(batch, 3, height, width\)"):
        autoencoder.encode(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"shape \(1, 16, 2, 2\); give \(batch, 4, rows, columns\)"):
        autoencoder.decode(torch.zeros(1, 16, 2, 2))
    latents = torch.zeros(1, 4, 2, 2)
    latents[0, 0, 0, 0], latents[0, 1, 1, 1] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="latents hold NaN or infinity in 2 of 16 values"):
        autoencoder.decode(latents)


def test_a_decoder_that_overflows_says_so(vae):
    half = copy.deepcopy(vae)
    half.decoder.conv_out.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the decoder overflows in torch\.float32"):
        QwenImageAutoencoder(half).decode(torch.zeros(1, 4, 2, 2))


def test_it_can_be_converted_and_moved(vae):
    autoencoder = QwenImageAutoencoder(copy.deepcopy(vae)).to(dtype=torch.bfloat16)
    assert autoencoder.vae.dtype == torch.bfloat16
    assert autoencoder.encode(torch.zeros(1, 3, 8, 8)).dtype == torch.float32
    assert autoencoder.to("meta").vae.device.type == "meta"


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
