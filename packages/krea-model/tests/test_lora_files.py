import copy
import json
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_krea2_lora_to_diffusers
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from diffusers.pipelines.krea2.pipeline_krea2 import Krea2Pipeline
from krea_model.configs import tiny
from krea_model.lora import LowRank, attach, fold_in
from krea_model.lora_files import read, write
from krea_model.names import linears, to_diffusers
from krea_model.testing import tiny_model
from krea_model.weights import save_diffusers
from safetensors.torch import load_file, save_file

NAMES = ["blocks.0.attn.wq", "blocks.1.mlp.down", "first", "txtfusion.projector", "tproj.1"]
NAMES += ["txtfusion.layerwise_blocks.1.attn.gate", "txtfusion.refiner_blocks.0.mlp.gate"]


@pytest.fixture
def lora() -> dict[str, LowRank]:
    model, generator = tiny_model(0, tiny()), torch.Generator().manual_seed(0)
    found = {}
    for name in NAMES:
        out, width = model.get_parameter(f"{name}.weight").shape
        a, b = torch.randn(4, width, generator=generator), torch.randn(out, 4, generator=generator)
        found[name] = LowRank(a=a, b=b, alpha=8.0)
    return found


def stored(lora, prefix="", sides=("lora_A", "lora_B"), alpha=True, rename=lambda name: name):
    tensors = {}
    for name, adapter in lora.items():
        key = prefix + rename(name)
        tensors[f"{key}.{sides[0]}.weight"], tensors[f"{key}.{sides[1]}.weight"] = adapter.a, adapter.b
        if alpha:
            tensors[f"{key}.alpha"] = torch.tensor(adapter.alpha)
    return tensors


def flat(name):
    return name.replace(".", "_")


def flat_diffusers(name):
    return flat(to_diffusers(name))


DOWN = ("lora_down", "lora_up")
PEFT = {"r": 4, "lora_alpha": 8.0}


@pytest.mark.parametrize(
    ("keys", "metadata", "beside"),
    [
        ({"prefix": "diffusion_model."}, None, None),
        ({"prefix": "diffusion_model.", "sides": DOWN}, None, None),
        ({"prefix": "model.diffusion_model.", "sides": DOWN}, None, None),
        ({"prefix": "base_model.model."}, None, None),
        ({"prefix": "base_model.model.", "alpha": False}, None, PEFT),
        ({"prefix": "base_model.model.", "alpha": False, "sides": ("lora_A.style", "lora_B.style")}, None, PEFT),
        ({"prefix": "lora_unet_", "sides": DOWN, "rename": flat}, None, None),
        ({"prefix": "lora_unet_", "sides": DOWN, "rename": flat_diffusers}, None, None),
        ({}, None, None),
        ({"prefix": "transformer.", "rename": to_diffusers}, None, None),
        (
            {"prefix": "transformer.", "rename": to_diffusers, "alpha": False},
            {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in PEFT.items()})},
            None,
        ),
    ],
)
def test_every_layout_loads_the_same_adapters(tmp_path, lora, keys, metadata, beside):
    save_file(stored(lora, **keys), tmp_path / "lora.safetensors", metadata)
    if beside:
        (tmp_path / "adapter_config.json").write_text(json.dumps(beside))
    for path in (tmp_path, tmp_path / "lora.safetensors"):
        loaded = read(path)
        assert loaded.keys() == lora.keys()
        for name, adapter in loaded.items():
            assert torch.equal(adapter.a, lora[name].a)
            assert torch.equal(adapter.b, lora[name].b)
            assert adapter.scale == 2.0


def test_without_any_alpha_the_scale_is_one(tmp_path, lora):
    save_file(stored(lora, "diffusion_model.", alpha=False), tmp_path / "lora.safetensors")
    assert {adapter.scale for adapter in read(tmp_path).values()} == {1.0}


def test_patterns_and_rank_stabilised_alpha(tmp_path, lora):
    save_file(stored(lora, "base_model.model.", alpha=False), tmp_path / "lora.safetensors")
    config = {"r": 4, "lora_alpha": 4, "alpha_pattern": {"attn.wq": 12, "tproj.1": 2}, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    loaded = read(tmp_path)
    assert loaded["blocks.0.attn.wq"].scale == pytest.approx(12 / 2)
    assert loaded["tproj.1"].scale == pytest.approx(1)
    assert loaded["first"].scale == pytest.approx(2)


def test_the_first_pattern_that_fits_counts_as_in_peft(tmp_path, lora):
    save_file(stored(lora, "base_model.model.", alpha=False), tmp_path / "adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 4, "alpha_pattern": {"blocks.0.attn.wq": 12, "attn.wq": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read(tmp_path)["blocks.0.attn.wq"].alpha == 12


def test_patterns_are_those_of_peft(tmp_path, lora):
    peft = pytest.importorskip("peft")
    alphas = {"attn.wq": 2, "blocks.0.attn.wq": 12, "refiner_blocks.0.mlp.gate": 7, "tproj.1": 3, "txtfusion.*": 5}
    ranks = {"blocks.1.mlp.down": 3, "first": 1, "mlp.*": 2}
    settings: dict[str, Any] = {"target_modules": list(lora), "alpha_pattern": alphas, "rank_pattern": ranks}
    peft.get_peft_model(tiny_model(0, tiny()), peft.LoraConfig(r=4, lora_alpha=8, **settings)).save_pretrained(tmp_path)
    found, theirs = read(tmp_path), peft.PeftModel.from_pretrained(tiny_model(0, tiny()), tmp_path)
    parts = {n: part for n, part in theirs.base_model.model.named_modules() if hasattr(part, "lora_alpha")}
    assert found.keys() == parts.keys() == lora.keys()
    assert {n: one.alpha for n, one in found.items()} == {n: part.lora_alpha["default"] for n, part in parts.items()}
    assert {found[name].alpha for name in NAMES} == {2, 3, 5, 7, 8}
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "mine.safetensors")
    again = read(tmp_path / "mine.safetensors")  # its ranks are those of the settings
    assert {name: one.alpha for name, one in again.items()} == {name: one.alpha for name, one in found.items()}


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"r": 32, "lora_alpha": 640}, 1),
        ({"r": 32, "lora_alpha": 640, "rank_pattern": {".*": 4}}, 160),
        ({"r": 4, "lora_alpha": 640}, 160),
        ({"r": 4, "lora_alpha": 640, "rank_pattern": {"first": 8, ".*": 4}}, 1),
        ({"lora_alpha": 640}, 1),
        ({"r": 4, "lora_alpha": "x"}, 1),
        ({"r": [4], "lora_alpha": 640}, 1),
        ([], 1),
    ],
)
def test_settings_beside_a_file_are_believed_if_its_ranks_are_theirs(tmp_path, lora, settings, scale):
    save_file(stored(lora, "base_model.model.", ("lora.down", "lora.up"), alpha=False), tmp_path / "lora.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert {adapter.scale for adapter in read(tmp_path / "lora.safetensors").values()} == {scale}


def test_settings_in_a_folder_and_by_the_name_of_peft_are_believed(tmp_path, lora):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 32, "lora_alpha": 640}))
    save_file(stored(lora, alpha=False), tmp_path / "resized.safetensors")
    assert {adapter.alpha for adapter in read(tmp_path).values()} == {640}
    (tmp_path / "resized.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert {adapter.alpha for adapter in read(tmp_path / "adapter_model.safetensors").values()} == {640}


def test_flat_names_are_unambiguous():
    names = linears(40)
    assert len({flat(spelling) for name in names for spelling in {name, to_diffusers(name)}}) == len(
        {spelling for name in names for spelling in {name, to_diffusers(name)}}
    )


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_written_files_come_back_with_their_alphas(tmp_path, lora, layout):
    lora["first"] = LowRank(a=lora["first"].a[:2], b=lora["first"].b[:, :2], alpha=3.0)
    write(tmp_path / "out.safetensors", lora, layout)
    loaded = read(tmp_path)
    assert loaded.keys() == lora.keys()
    for name, adapter in loaded.items():
        assert torch.equal(adapter.delta(), lora[name].delta()), name


def test_the_original_layout_maps_as_in_diffusers(tmp_path, lora):
    write(tmp_path / "out.safetensors", lora)
    tensors = load_file(tmp_path / "out.safetensors")
    theirs = _convert_non_diffusers_krea2_lora_to_diffusers({k: v for k, v in tensors.items() if "lora" in k})
    assert {f"transformer.{to_diffusers(name)}.lora_A.weight" for name in lora} <= set(theirs)
    assert len(theirs) == 2 * len(lora)


def test_diffusers_itself_loads_the_diffusers_layout_with_its_alphas(tmp_path, lora):
    pytest.importorskip("peft")
    lora["first"] = LowRank(a=lora["first"].a[:2], b=lora["first"].b[:, :2], alpha=3.0)
    write(tmp_path / "out.safetensors", lora, "diffusers")
    model = tiny_model(0, tiny())
    save_diffusers(tmp_path / "plain", model.state_dict(), model.config)
    adapted = Krea2Transformer2DModel.from_pretrained(tmp_path / "plain").eval()
    fold_in(model, lora)
    save_diffusers(tmp_path / "folded", model.state_dict(), model.config)
    folded = Krea2Transformer2DModel.from_pretrained(tmp_path / "folded").eval()
    absent: dict[str, Any] = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer"))
    pipeline = Krea2Pipeline(**absent, transformer=copy.deepcopy(adapted))
    pipeline.load_lora_weights(tmp_path, weight_name="out.safetensors")
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 6, 16, generator=generator),
        "encoder_hidden_states": torch.randn(1, 5, 3, 32, generator=generator),
        "timestep": torch.tensor([0.25]),
        "position_ids": torch.zeros(11, 3),
        "return_dict": False,
    }
    with torch.no_grad():
        plain, with_lora, want = (m(**inputs)[0] for m in (adapted, pipeline.transformer, folded))
    assert (with_lora - plain).abs().max() > 0.1
    assert (with_lora - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize(
    ("strange", "guess"),
    [
        ("diffusion_model.blocks.0.attn.to_qkv.lora_A.weight", "fused queries, keys and values"),
        ("diffusion_model.blocks.0.attn.wq.lokr_w1", "a LoKr adapter, which is not supported"),
        ("diffusion_model.blocks.0.attn.wq.hada_w1_a", "a LoHa adapter"),
        ("diffusion_model.blocks.0.attn.wq.dora_scale", "a DoRA, which is not supported"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector", "a DoRA"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "a LoRA for a FLUX model"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "a LoRA for a FLUX model"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", "a Stable Diffusion or SDXL model"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "a Stable Diffusion or SDXL model"),
        ("transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight", "a LoRA for a Qwen-Image model"),
        ("blocks.0.attn.wq.diff_b", "full differences"),
        ("blocks.0.attn.wq.weight", "a checkpoint; read it with krea_model.weights.load"),
        ("blocks.0.attn.wq.lora_B.bias", "LoRAs of other models are not supported"),
        ("alpha", "LoRAs of other models are not supported"),
    ],
)
def test_a_key_that_is_not_understood_is_an_error_that_says_what_it_looks_like(tmp_path, lora, strange, guess):
    save_file({strange: torch.ones(2, 2)}, tmp_path / "alone.safetensors")
    save_file(stored(lora) | {strange: torch.ones(2, 2)}, tmp_path / "among.safetensors")
    for name in ("alone", "among"):
        with pytest.raises(ValueError, match=f"1 of .* keys do not fit, first {strange};.*{guess}"):
            read(tmp_path / f"{name}.safetensors")


def test_two_adapters_for_one_layer_are_an_error(tmp_path, lora):
    twice = stored(lora, "diffusion_model.") | stored(lora, "lora_unet_", DOWN, rename=flat)
    save_file({key: tensor.clone() for key, tensor in twice.items()}, tmp_path / "twice.safetensors")
    with pytest.raises(ValueError, match=r"first lora_unet_\S+ \(its layer has two\)"):
        read(tmp_path / "twice.safetensors")


def test_factors_that_do_not_multiply_are_an_error_that_names_the_layer(tmp_path, lora):
    bad = stored(lora) | {"first.lora_B.weight": torch.ones(64, 3)}
    save_file(bad, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=r"first: low-rank factors of shapes \(4, 16\) and \(64, 3\) do not multiply"):
        read(tmp_path / "bad.safetensors")


def test_a_lora_for_a_wider_model_reads_but_does_not_fit(tmp_path):
    wide = {"diffusion_model.blocks.0.attn.wq": (128, 128), "diffusion_model.blocks.9.attn.wq": (64, 64)}
    tensors = {f"{name}.lora_A.weight": torch.ones(2, shape[1]) for name, shape in wide.items()}
    tensors |= {f"{name}.lora_B.weight": torch.ones(shape[0], 2) for name, shape in wide.items()}
    save_file(tensors, tmp_path / "wide.safetensors")
    said = (
        r"for another model: 2 of 2 layers do not fit .*wq \(128, 128\) where the model has \(64, 64\).*no such layer"
    )
    with pytest.raises(ValueError, match=said):
        attach(tiny_model(0, tiny()), read(tmp_path / "wide.safetensors"))


def test_alpha_is_written_exactly_beside_factors_in_half_precision(tmp_path, lora):
    half = {n: LowRank(a=x.a.bfloat16(), b=x.b.bfloat16(), alpha=33.3) for n, x in lora.items()}
    write(tmp_path / "half.safetensors", half)
    assert {x.alpha for x in read(tmp_path).values()} == {float(torch.tensor(33.3))}
    assert {x.a.dtype for x in read(tmp_path).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"<html>", "is a web page"), (b"PK\x03\x04" + bytes(50), "is a pickle")]
)
def test_a_download_that_is_no_lora_is_said(tmp_path, content, said):
    (tmp_path / "lora.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "lora.safetensors")


def test_half_an_adapter_an_empty_file_and_a_broken_file_are_errors(tmp_path, lora):
    tensors = stored(lora)
    del tensors["first.lora_B.weight"]
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="first without b"):
        read(tmp_path / "half.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="first none at all"):
        read(tmp_path / "empty.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        read(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        read(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="holds 3 safetensors files"):
        read(tmp_path)
    with pytest.raises(ValueError, match='layout "kohya" is unknown'):
        write(tmp_path / "x.safetensors", lora, "kohya")  # pyright: ignore[reportArgumentType]


def test_old_spellings_of_diffusers_load(tmp_path):
    tensors = {"transformer.transformer_blocks.0.attn.to_q.lora.down.weight": torch.ones(2, 64)}
    tensors["transformer.transformer_blocks.0.attn.to_q.lora.up.weight"] = torch.ones(64, 2)
    save_file(tensors, tmp_path / "a.safetensors")
    assert torch.equal(read(tmp_path / "a.safetensors")["blocks.0.attn.wq"].delta(), torch.full((64, 64), 2.0))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"alpha": torch.tensor(0.0)}, "alpha 0.0 has no effect"),
        ({"alpha": torch.tensor(float("nan"))}, "not finite"),
        ({"alpha": torch.ones(2)}, "alpha has 2 values"),
        ({"lora_A.weight": torch.full((2, 64), float("nan"))}, "not finite"),
        ({"lora_A.weight": torch.ones(2, 64).to(torch.int8)}, "not of floating-point numbers"),
        ({"lora_A.weight": torch.ones(0, 64), "lora_B.weight": torch.ones(64, 0)}, "rank 0"),
    ],
)
def test_adapters_without_effect_or_sense_are_errors(tmp_path, changed, said):
    parts = {"lora_A.weight": torch.ones(2, 64), "lora_B.weight": torch.ones(64, 2)} | changed
    save_file({f"blocks.0.attn.wq.{name}": tensor for name, tensor in parts.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "a.safetensors")
