import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.pipelines.krea2.pipeline_krea2 import Krea2Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from krea_model import autoencoder, text, weights
from krea_model.configs import tiny
from krea_model.export import save_pipeline, scheduler_config
from krea_model.flow import shift_mu, timesteps
from krea_model.mmdit import MMDiT
from krea_model.packing import unpack
from krea_model.sampling import noise, sample
from krea_model.testing import tiny_model
from krea_model.testing_folder import tiny_autoencoder, tiny_text_encoder, tiny_tokenizer
from krea_model.text import PREFIX, SUFFIX
from transformers import PreTrainedTokenizerFast, Qwen3VLModel

PROMPT, TAPS = "a red cat and the quiet sea", (0, 2, 5)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's way of splitting and its special tokens; the template has its 34 and 5 tokens."""
    found = tiny_tokenizer([PROMPT])
    assert (len(found(PREFIX).input_ids), len(found(SUFFIX).input_ids)) == (34, 5)
    return found


@pytest.fixture(scope="module")
def encoder() -> Qwen3VLModel:
    torch.manual_seed(0)
    return tiny_text_encoder()


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLQwenImage:
    torch.manual_seed(0)
    return tiny_autoencoder()


@pytest.fixture
def model() -> MMDiT:
    return tiny_model(1, tiny())


@pytest.fixture
def parts(vae, encoder, tokenizer) -> dict[str, Any]:
    return {"vae": vae, "text_encoder": encoder, "tokenizer": tokenizer, "taps": TAPS}


@pytest.mark.parametrize(
    ("distilled", "guidance", "size", "bound"), [(False, 3.0, (40, 56), 1e-4), (True, 0.0, (32, 32), 5e-6)]
)
def test_diffusers_samples_from_our_folder_as_we_do(tmp_path, model, parts, distilled, guidance, size, bound):
    folder = save_pipeline(tmp_path / "pipeline", model, **parts, is_distilled=distilled)
    theirs: Any = Krea2Pipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    options = {"height": size[0], "width": size[1], "num_inference_steps": 4, "guidance_scale": guidance}
    want, picture = (
        theirs(PROMPT, **options, generator=torch.Generator().manual_seed(5), output_type=kind).images
        for kind in ("latent", "pt")
    )
    ours, encode, pictures = weights.load(folder), text.load(folder, torch.float32), autoencoder.load(folder)
    assert (ours.config, encode.taps) == (model.config, TAPS)
    grid = (size[0] // 8, size[1] // 8)
    mu = 1.15 if distilled else shift_mu(grid[0] * grid[1])
    start, empty = noise([5], [grid], 16), encode([""]) if guidance else None
    got = sample(ours, start, encode([PROMPT]), [grid], steps=4, mu=mu, guidance=guidance, uncond=empty)
    assert want.std() > 0.5
    assert (got - want[0]).abs().max() <= bound
    decoded = pictures.decode(unpack(want[0], [grid])[0][None])
    assert (decoded / 2 + 0.5 - picture).abs().max() <= 2e-6


@pytest.mark.parametrize("distilled", [False, True])
def test_the_folder_is_the_one_that_diffusers_writes(tmp_path, model, twin, parts, distilled):
    save_pipeline(tmp_path / "ours", model, **parts, is_distilled=distilled)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
    )
    modules = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer")}
    pipeline = Krea2Pipeline(
        scheduler=scheduler,
        transformer=twin(model),
        text_encoder_select_layers=TAPS,
        is_distilled=distilled,
        **modules,
    )
    pipeline.save_pretrained(tmp_path / "theirs")
    names = [
        {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
        for root in (tmp_path / "ours", tmp_path / "theirs")
    ]
    assert names[0] == names[1]
    for name in ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"):
        mine, other = (json.loads((tmp_path / side / name).read_text()) for side in ("ours", "theirs"))
        assert mine.items() <= other.items(), name
        assert other.keys() - mine.keys() <= {"_diffusers_version"}, name


def test_a_checkpoint_and_folders_are_copied_and_converted(tmp_path, model, parts, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 100_000)
    monkeypatch.setattr(weights.save_diffusers, "__defaults__", (None, 100_000))
    weights.save(tmp_path / "raw.safetensors", model.state_dict(), model.config)
    first = save_pipeline(tmp_path / "first", model, **parts, is_distilled=False)
    folders = {name: first / name for name in ("vae", "text_encoder", "tokenizer")}
    second = save_pipeline(
        tmp_path / "second",
        weights.Checkpoint(tmp_path / "raw.safetensors"),
        **folders,
        taps=TAPS,
        is_distilled=False,
        dtype=torch.bfloat16,
    )
    assert json.loads((first / "model_index.json").read_text()) == json.loads((second / "model_index.json").read_text())
    assert len(list((second / "transformer").glob("*.safetensors"))) > 1
    theirs: Any = Krea2Pipeline.from_pretrained(second)
    assert theirs.tokenizer(PROMPT).input_ids == parts["tokenizer"](PROMPT).input_ids
    loaded = weights.load(second)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16()), name


def test_a_folder_of_the_released_encoder_names_the_class_without_a_head(tmp_path, model, parts, encoder):
    encoder.save_pretrained(tmp_path / "qwen")
    file = tmp_path / "qwen" / "config.json"
    stated = json.loads(file.read_text())
    assert stated["architectures"] == ["Qwen3VLModel"]
    file.write_text(json.dumps(stated | {"architectures": ["Qwen3VLForConditionalGeneration"]}))
    parts["text_encoder"] = tmp_path / "qwen"
    folder = save_pipeline(tmp_path / "pipeline", model, **parts, is_distilled=True)
    assert json.loads((folder / "model_index.json").read_text())["text_encoder"] == ["transformers", "Qwen3VLModel"]


def test_an_interrupted_export_is_never_taken_for_whole(tmp_path, model, parts):
    folder = save_pipeline(tmp_path / "pipeline", model, **parts, is_distilled=False)

    class Full:
        def save_pretrained(self, save_directory: Path) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_pipeline(folder, model, **parts | {"text_encoder": Full()}, is_distilled=False)
    assert not (folder / "model_index.json").exists()
    with pytest.raises(OSError, match="model_index"):
        Krea2Pipeline.from_pretrained(folder)


def test_what_cannot_become_a_pipeline_is_refused_before_anything_is_written(tmp_path, model, parts):
    target = tmp_path / "pipeline"
    with pytest.raises(ValueError, match=r"2 taps \(0, 1\) for a model of 3"):
        save_pipeline(target, model, **parts | {"taps": (0, 1)}, is_distilled=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is no folder of a vae"):
        save_pipeline(target, model, **parts | {"vae": tmp_path / "empty"}, is_distilled=False)
    assert not target.exists()
    save_pipeline(target, model, **parts, is_distilled=False)
    with pytest.raises(ValueError, match="written over by itself"):
        save_pipeline(target, model, **parts | {"vae": target / "vae"}, is_distilled=False)
    assert (target / "model_index.json").exists()


@pytest.mark.parametrize(("steps", "mu"), [(8, 1.15), (28, 0.90625), (52, 2.20625)])
def test_the_scheduler_of_the_folder_gives_our_times(steps, mu):
    theirs: Any = FlowMatchEulerDiscreteScheduler.from_config(scheduler_config())
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    assert (theirs.sigmas - torch.tensor(timesteps(steps, mu))).abs().max() <= 2e-7


def test_it_needs_neither_diffusers_nor_transformers():
    code = "import sys; sys.modules |= {'diffusers': None, 'transformers': None}; import krea_model.export"
    subprocess.run([sys.executable, "-c", code], check=True)
