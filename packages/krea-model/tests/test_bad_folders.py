"""Folders and files whose contents contradict themselves: one error that names the file, the value and the rule."""

import errno
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import krea_model
import pytest
import torch
from krea_model import bundle, export, weights
from krea_model.autoencoder import QwenImageAutoencoder
from krea_model.configs import tiny
from krea_model.damage import damage_named, read_object
from krea_model.encoding import prompt_list
from krea_model.mmdit import MMDiT
from krea_model.testing import FakeTextEncoder, tiny_model
from krea_model.testing_folder import tiny_folder
from krea_model.textcache import CachedEncoder, TextCache
from safetensors.torch import save_file

FP32 = torch.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("released") / "Krea-2-Tiny")


def changed(folder: Path, to: Path, file: str, change: Any) -> Path:
    copy = shutil.copytree(folder, to)
    stated = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(change(stated)))
    return copy


def refused(path: Path, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        krea_model.load(path, dtype=FP32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "key", "value", "says"),
    [
        ("transformer/config.json", "rope_theta", None, "rope_theta = None; it must be a positive number"),
        ("transformer/config.json", "rope_theta", "1000", "rope_theta = '1000'; it must be a positive number"),
        ("transformer/config.json", "rope_theta", 0, "rope_theta = 0; it must be a positive number"),
        ("transformer/config.json", "rope_theta", float("nan"), "rope_theta = nan; it must be a positive number"),
        ("transformer/config.json", "num_attention_heads", "4", "num_attention_heads = '4', but the .* say 4"),
        ("transformer/config.json", "num_key_value_heads", 3, "num_key_value_heads = 3, but .* say 2"),
        ("transformer/config.json", "axes_dims_rope", None, r"axes_dims_rope = None, but .* say \[4, 6, 6\]"),
        ("vae/config.json", "latents_mean", [0.1], r"latents_mean .* \[0\.1\]; it must hold 4 numbers"),
        ("vae/config.json", "latents_mean", [0.1] * 5, "latents_mean .* it must hold 4 numbers"),
        ("vae/config.json", "latents_mean", ["a"] * 4, "latents_mean .* it must hold 4 numbers"),
        ("vae/config.json", "latents_mean", 5, "latents_mean of the autoencoder is 5; it must hold 4 numbers"),
        ("vae/config.json", "latents_std", [0.0] * 4, "latents_std .* it must hold 4 numbers above 0"),
        ("vae/config.json", "latents_std", None, "latents_std of the autoencoder is None"),
        ("vae/config.json", "z_dim", 5, "the autoencoder in .* is damaged or not whole"),
        ("vae/config.json", "base_dim", "8", "the autoencoder in .* is damaged or not whole"),
        ("vae/config.json", "temperal_downsample", [True], "the autoencoder in .* is damaged or not whole"),
        ("vae/config.json", "_class_name", [1], r"holds a \[1\]; the autoencoders known here are"),
        (
            "model_index.json",
            "patch_size",
            "2",
            "patch_size = '2'; it must be a whole number whose square divides the 16",
        ),
        ("model_index.json", "patch_size", 0, "patch_size = 0; it must be a whole number"),
        ("model_index.json", "patch_size", 3, "patch_size = 3; it must be a whole number whose square divides the 16"),
        ("model_index.json", "text_encoder_select_layers", 5, "taps 5 of an encoder with 6 layers"),
        ("model_index.json", "text_encoder_select_layers", "abc", "taps .* of an encoder with 6 layers"),
        ("model_index.json", "text_encoder_select_layers", [0.5, 2, 5], r"taps \(0\.5, 2, 5\) of an encoder"),
        ("model_index.json", "is_distilled", "no", "is_distilled = 'no'; it must be true or false"),
        ("text_encoder/config.json", "text_config", None, "states no sizes"),
        ("text_encoder/config.json", "model_type", 5, "is a model of type 5; Krea 2 reads Qwen3-VL"),
    ],
)
def test_a_value_that_cannot_be(folder: Path, tmp_path: Path, file: str, key: str, value: Any, says: str) -> None:
    refused(changed(folder, tmp_path / "copy", file, lambda stated: stated | {key: value}), says)


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", "32"), ("hidden_size", 48), ("num_attention_heads", 0), ("vocab_size", 10)]
)
def test_sizes_of_the_text_encoder_that_cannot_be(folder: Path, tmp_path: Path, key: str, value: Any) -> None:
    def change(stated: Any) -> Any:
        return stated | {"text_config": stated["text_config"] | {key: value}}

    copy = changed(folder, tmp_path / "copy", "text_encoder/config.json", change)
    refused(copy, "the text encoder in .* is damaged or not whole .*; download it again")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"null", b"\xff\xfe"])
@pytest.mark.parametrize(
    "file", ["transformer/config.json", "vae/config.json", "text_encoder/config.json", "model_index.json"]
)
def test_json_that_is_no_object(folder: Path, tmp_path: Path, file: str, content: bytes) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / file).write_bytes(content)
    refused(copy, r"json is damaged .*; download it again")


@pytest.mark.parametrize("file", ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"])
def test_a_tokenizer_that_is_none(folder: Path, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / file).write_bytes(b"\xff\xfe")
    refused(copy, "the tokenizer in .* is damaged or not whole")


def test_a_transformer_alone_must_be_one(tmp_path: Path) -> None:
    files = {
        "a.txt": ("a recipe, wüst\n" * 9).encode(),
        "a.png": b"\x89PNG\r\n\x1a\n" + bytes(60),
        "a.jpg": b"\xff\xd8\xff\xe0" + bytes(60),
        "b.safetensors": bytes(60),
    }
    says = ["a text, no weights", "a picture, no weights", "a picture, no weights", "truncated or not a safetensors"]
    for (name, content), said in zip(files.items(), says, strict=True):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, rf"{name} is {said}")
    save_file({"double_blocks.0.img_mlp.0.weight": torch.ones(2)}, tmp_path / "flux.safetensors")
    refused(tmp_path / "flux.safetensors", "looks like a FLUX model")
    weights.save(tmp_path / "whole.safetensors", tiny_model(0, tiny()).state_dict(), tiny())
    refused(tmp_path / "whole.safetensors", "is a transformer alone; name the folders")


NO_MAP = (
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError("Cannot allocate memory (os error 12)"),  # as a library in Rust says it
    ImportError("no x"),
)


def test_errors_of_memory_and_of_missing_libraries_stay_what_they_are(tmp_path: Path) -> None:
    for error in (MemoryError("gone"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), *NO_MAP):
        with pytest.raises(type(error)) as caught, damage_named(tmp_path, "part"):
            raise error
        assert caught.value is error
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("first.weight", (64,), r"first\.weight has shape \(64,\); it must have 2 axes"),
        ("first.weight", (64, 4, 4), r"first\.weight has shape \(64, 4, 4\); it must have 2 axes"),
        ("first.weight", (0, 16), r"first\.weight has shape \(0, 16\); .* not be empty"),
        ("blocks.0.attn.qknorm.qnorm.scale", (), r"has shape \(\); it must have one axis"),
        ("blocks.0.attn.qknorm.qnorm.scale", (0,), r"has shape \(0,\)"),
        ("blocks.0.attn.wk.weight", (), "it must have 2 axes"),
        ("txtfusion.projector.weight", (), "it must have 2 axes"),
        ("tmlp.0.weight", (64, 7), r"tdim is 7; half of it.* tmlp\.0\.weight 7 columns"),
        (
            "blocks.0.attn.qknorm.qnorm.scale",
            (7,),
            r"qnorm\.scale makes heads of 7, blocks\.0\.attn\.wk\.weight has 32",
        ),
        (
            "blocks.0.attn.qknorm.qnorm.scale",
            (8,),
            r"head size 8 is too small .*blocks\.0\.attn.qknorm.qnorm.scale has 8",
        ),
        ("blocks.0.attn.wk.weight", (48, 64), r"wk\.weight has 48 rows and first\.weight a width of 64: each must"),
        ("txtmlp.0.scale", (31,), r"has 32 rows and txtmlp\.0\.scale a width of 31: each must divide"),
        ("blocks.0.mlp.up.weight", (200, 64), r"a hidden width of 200 .blocks\.0\.mlp\.up\.weight. at width 64"),
    ],
)
def test_a_tensor_from_which_no_size_follows(tmp_path: Path, name: str, shape: tuple[int, ...], says: str) -> None:
    state = {key: tensor.clone() for key, tensor in tiny_model(0, tiny()).state_dict().items()}
    save_file(state | {name: torch.zeros(shape)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=rf"odd\.safetensors is no Krea 2 model that can be built: .*{says}"):
        weights.load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    "stated",
    ["", "{", "5", "[]", "{}", *(json.dumps(asdict(tiny()) | change) for change in ({"heads": 3}, {"tdim": "8"}))],
)
def test_sizes_in_the_metadata_that_cannot_be(tmp_path: Path, stated: str) -> None:
    state = dict(tiny_model(0, tiny()).state_dict())
    save_file(state, tmp_path / "odd.safetensors", {"krea_model.config": stated})
    with pytest.raises(ValueError, match="is damaged or comes from another version of krea-model: the sizes"):
        weights.load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    "content", ["5", "[]", "{}", '{"format": "krea-bundle/1"}', '{"format": "krea-bundle/1", "config": 5}']
)
def test_a_manifest_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"is damaged|has format None"):
        bundle.load(tmp_path)


def test_a_manifest_of_impossible_sizes(tmp_path: Path) -> None:
    parts: dict[str, Any] = {name: {} for name in ("config", "text", "defaults", "about", "sha256")}
    stated = parts | {"format": "krea-bundle/1", "autoencoder": {"channels": "x"}}
    (tmp_path / "manifest.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"the model in .* is damaged or not whole"):
        bundle.load(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "short", "garbage", "alien", "lengths", "prompts", "twice", "missing"])
def test_a_table_of_prompts_that_is_damaged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "states.safetensors"
    TextCache.build("fake", FakeTextEncoder(), ["a b", "c"]).save(path)
    whole, states = path.read_bytes(), torch.zeros(5, 3, 32)
    about = {"encoder": "fake", "prompts": '["a b", "c"]'}
    match damage:
        case "empty" | "short" | "garbage":
            path.write_bytes({"empty": b"", "short": whole[:-5], "garbage": b"\xff" * 99}[damage])
        case "alien":
            save_file({"states": states}, path, about)
        case "lengths":
            save_file({"states": states, "lengths": torch.tensor([3, 3])}, path, about)
        case "prompts":
            save_file({"states": states, "lengths": torch.tensor([3, 2])}, path, {"encoder": "fake"})
        case "twice":
            save_file({"states": states, "lengths": torch.tensor([3, 2])}, path, about | {"prompts": '["c", "c"]'})
        case _:
            path.unlink()
    with pytest.raises(ValueError, match=r"states\.safetensors holds no encoded prompts .*; delete it and encode them"):
        TextCache.load(path, "fake")


def test_prompts_that_are_none() -> None:
    cache = TextCache.build("fake", FakeTextEncoder(), ["a"])
    for use in (prompt_list, cache, lambda wrong: TextCache.build("fake", FakeTextEncoder(), wrong)):
        for wrong in ("a", [], [1]):
            with pytest.raises(ValueError, match=r"prompts are .*; give a list that holds at least one string"):
                use(wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("tensor", [torch.tensor(1.0), torch.zeros(3, 96), torch.zeros(3, 3, 32, dtype=torch.int32)])
def test_a_kept_prompt_of_another_shape_is_encoded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tensor: torch.Tensor
) -> None:
    encoder = CachedEncoder(FakeTextEncoder(), tmp_path, "fake")
    want = encoder(["a sea"]).states
    about = {} if not tensor.ndim else encoder._metadata("a sea", tensor)
    save_file({"states": tensor}, encoder.path("a sea"), about)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encoder(["a sea"]).states, want)
    assert "damaged and made again" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"vae": None}, "vae is of type NoneType; give a folder, or an object of its library"),
        ({"taps": None}, "taps are None; give the numbers of layers, 3 of them"),
        ({"taps": "abc"}, "taps are 'abc'; give the numbers"),
        ({"taps": [-1, 2, 5]}, r"taps are \[-1, 2, 5\]"),
        ({"is_distilled": "no"}, "is_distilled = 'no'; give an MMDiT or a Checkpoint, and True or False"),
        ({"model": "a path"}, "a pipeline of type str"),
        ({"dtype": "bfloat16"}, "weights in 'bfloat16' hold nothing"),
    ],
)
def test_what_is_no_pipeline_to_save_touches_nothing(folder: Path, tmp_path: Path, wrong: Any, says: str) -> None:
    parts = {name: folder / name for name in ("vae", "text_encoder", "tokenizer")}
    given: dict[str, Any] = parts | {"model": MMDiT(tiny()), "taps": [0, 2, 5], "is_distilled": False} | wrong
    with pytest.raises(ValueError, match=says):
        export.save_pipeline(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_what_is_no_state_to_save(tmp_path: Path) -> None:
    model: Any = MMDiT(tiny())
    several: list[Any] = [weights.save, weights.save_diffusers]
    for use in several:
        for wrong in (model, {"first.weight": 5}):
            with pytest.raises(ValueError, match=r"a state of type .*; give tensors by name: model.state_dict()"):
                use(tmp_path / "a", wrong, tiny())
    with pytest.raises(ValueError, match="a state of type MMDiT"):
        weights.average([model])
    with pytest.raises(ValueError, match="shard_bytes is '1GB'"):
        weights.save_diffusers(tmp_path / "a", model.state_dict(), tiny(), shard_bytes="1GB")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"with weights \[nan\]"):
        weights.average([model.state_dict()], [float("nan")])


def test_the_statistics_follow_the_channels(folder: Path) -> None:
    found = krea_model.load(folder, dtype=FP32).autoencoder
    assert isinstance(found, QwenImageAutoencoder)
    assert found._mean.shape == (4, 1, 1)
