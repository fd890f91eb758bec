"""Every form in which a model comes opens; what is none is named; the hash follows the content."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import krea_model
import pytest
import torch
from krea_model import loading, weights
from krea_model.identity import content_hash
from krea_model.testing_folder import tiny_folder
from safetensors.torch import save_file

FP32 = torch.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("released") / "Krea-2-Tiny")


def drawn(pipeline: krea_model.Pipeline) -> torch.Tensor:
    return pipeline.draw(["a red cat"], [1], width_px=32, height_px=16, steps=2, guidance=1.0)[0]


def test_a_bare_checkpoint_with_the_other_two_parts_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    want = drawn(krea_model.load(folder, dtype=FP32))
    model = weights.load(folder)
    weights.save(tmp_path / "turbo.safetensors", model.state_dict(), model.config)
    parts: dict[str, Any] = {"encoder": folder, "autoencoder": folder / "vae"}
    single = krea_model.load(tmp_path / "turbo.safetensors", **parts, dtype=FP32)
    assert single.defaults.steps == 8  # the released name
    assert single.about == {"name": "turbo.safetensors"}
    bare = krea_model.load(folder / "transformer", **parts, dtype=FP32)
    assert bare.defaults.steps == 52
    for pipeline in (bare, single.with_preset("raw")):
        assert torch.equal(drawn(pipeline), want)
    with pytest.raises(ValueError, match="is a transformer alone; name the folders of its text encoder"):
        krea_model.load(tmp_path / "turbo.safetensors", encoder=folder)


def test_number_formats(folder: Path) -> None:
    half = krea_model.load(folder, dtype=torch.bfloat16)
    assert half.model.first.weight.dtype == torch.bfloat16
    assert drawn(half).dtype == torch.uint8
    stored = krea_model.load(folder)
    assert stored.model.first.weight.dtype == torch.float32


@pytest.mark.parametrize("blocks", ["memory", "disk"])
@pytest.mark.parametrize("kind", [None, "int8"])
def test_blocks_that_wait_elsewhere_draw_the_same(folder: Path, tmp_path: Path, blocks: Any, kind: Any) -> None:
    want = drawn(krea_model.load(folder, dtype=FP32, quantise=kind))
    assert torch.equal(drawn(krea_model.load(folder, dtype=FP32, quantise=kind, blocks=blocks)), want)


def test_quantised_weights_change_a_picture_a_little(folder: Path) -> None:
    plain, packed = krea_model.load(folder, dtype=FP32), krea_model.load(folder, dtype=FP32, quantise="int8")
    assert packed.model.blocks[0].get_submodule("mlp.up").get_buffer("weight").dtype == torch.int8
    levels = (drawn(plain).int() - drawn(packed).int()).abs().float()
    assert 0 < levels.mean() < 10
    with pytest.raises(ValueError, match='quantisation "int3" is unknown; use "int8" or "fp8"'):
        krea_model.load(folder, quantise="int3")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="not 'cloud'"):
        krea_model.load(folder, blocks="cloud")  # pyright: ignore[reportArgumentType]


def test_the_hash_follows_the_content(folder: Path, tmp_path: Path) -> None:
    want = krea_model.load(folder, dtype=FP32).sha256
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert krea_model.load(copy, dtype=torch.bfloat16).sha256 == want
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"text_encoder_select_layers": [1, 2, 5]}))
    assert krea_model.load(copy, dtype=FP32).sha256 != want
    other = tiny_folder(tmp_path / "other", seed=1)
    shutil.copytree(other / "vae", copy / "vae", dirs_exist_ok=True)
    shutil.copy(folder / "model_index.json", copy)
    assert krea_model.load(copy, dtype=FP32).sha256 != want


def test_large_files_are_hashed_by_a_part_of_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"w{i}": torch.randn(300, 200, generator=generator) for i in range(5)} | {"b": torch.zeros(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    monkeypatch.setattr("krea_model.identity.WHOLE_BYTES", 1000)
    want = content_hash([("model", tmp_path / "a.safetensors")])
    assert want == content_hash(
        [("model", Path(shutil.copy(tmp_path / "a.safetensors", tmp_path / "moved.safetensors")))]
    )
    hashes = {want, content_hash([("vae", tmp_path / "a.safetensors")])}
    for name, tensor in tensors.items():
        save_file(tensors | {name: tensor + 1e-6 * (1 + tensor.abs())}, tmp_path / "b.safetensors")
        hashes.add(content_hash([("model", tmp_path / "b.safetensors")]))
    assert len(hashes) == 2 + len(tensors)


def test_folders_that_hold_no_model_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "missing", tmp_path / "missing.safetensors"):
        with pytest.raises(ValueError, match=f"{wrong.name} is no model folder: it has neither"):
            krea_model.load(wrong)
    for part, says in (("vae", "holds no autoencoder"), ("text_encoder", "holds no text encoder")):
        copy = shutil.copytree(folder, tmp_path / part)
        shutil.rmtree(copy / part)
        with pytest.raises(ValueError, match=says):
            krea_model.load(copy)
    copy = shutil.copytree(folder, tmp_path / "hollow")
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="should hold one checkpoint but has none"):
        krea_model.load(copy)
    (copy / "model_index.json").write_text("{")
    shutil.copytree(folder / "transformer", copy / "transformer", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"model_index\.json is damaged"):
        krea_model.load(copy)


def test_a_model_that_does_not_fit_is_explained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(weights, "load", greedy)
    with pytest.raises(MemoryError, match="not enough memory for this model"):
        loading.load(folder)


def test_parts_that_do_not_fit_are_named_before_anything_is_drawn(folder: Path, tmp_path: Path) -> None:
    config = krea_model.tiny()
    weights.save(tmp_path / "raw.safetensors", krea_model.MMDiT(config).state_dict(), config)
    stored = weights.Checkpoint(folder / "transformer").config()
    assert (stored.channels, stored.txtlayers, stored.txtdim) == (config.channels, config.txtlayers, config.txtdim)
    wide = replace(config, channels=8)
    weights.save(tmp_path / "raw.safetensors", krea_model.MMDiT(wide).state_dict(), wide)
    with pytest.raises(ValueError, match=r"do not fit: .* takes 8 latent channels and 3 text layers of width 32"):
        krea_model.load(tmp_path / "raw.safetensors", encoder=folder, autoencoder=folder)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_damaged_parts_are_named(folder: Path, tmp_path: Path, part: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = next((copy / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"in .* is damaged or not whole .*download it again"):
        krea_model.load(copy)
    shutil.copy(next((folder / part).glob("*.safetensors")), file)
    (copy / part / "config.json").write_text("{")
    with pytest.raises(ValueError, match=rf"{part}.config\.json is damaged .*download it again"):
        krea_model.load(copy)


def test_a_transformer_folder_is_sampled_as_its_pipeline_is_called(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "Krea-2-Turbo")
    found = krea_model.load(copy / "transformer", encoder=folder, autoencoder=folder)
    assert found.defaults.steps == 8
