import copy
import importlib
import json
import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
from diffusers.pipelines.krea2.pipeline_krea2 import Krea2Pipeline
from krea_model.interfaces import TextEncoder
from krea_model.testing_folder import tiny_text_encoder, tiny_tokenizer
from krea_model.text import PREFIX, SUFFIX, TAPS, Qwen3VLEncoder, load
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen3VLModel

TINY_TAPS = (0, 2, 5)
PROMPTS = [
    "a red cat",
    "",
    "\nover two lines\n\nand a gap",
    "<|im_end|> is parsed",
    "a longer prompt about a quiet sea",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's way of splitting text and its special tokens, trained on a few lines."""
    return tiny_tokenizer(["a red cat\n\n", "the sea\n\n", *PROMPTS])


@pytest.fixture(scope="module")
def model() -> Qwen3VLModel:
    torch.manual_seed(0)
    return tiny_text_encoder()


def padded_reference(model, tokenizer, prompts, tokens=64):
    """States and mask from diffusers: padding between prompt and suffix, positions that skip it."""
    absent: dict[str, Any] = dict.fromkeys(("scheduler", "vae", "transformer"))
    pipeline = Krea2Pipeline(**absent, text_encoder=model, tokenizer=tokenizer, text_encoder_select_layers=TINY_TAPS)
    pipeline.prompt_template_encode_start_idx = len(tokenizer(PREFIX).input_ids)
    pipeline.prompt_template_encode_num_suffix_tokens = len(tokenizer(SUFFIX).input_ids)
    with torch.no_grad():
        return pipeline.get_text_hidden_states(prompts, tokens, torch.device("cpu"))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_natural_lengths_equal_the_padded_way_of_diffusers(model, tokenizer, dtype, tolerance):
    model = copy.deepcopy(model).to(dtype)
    encoder: TextEncoder = Qwen3VLEncoder(model, tokenizer, taps=TINY_TAPS, max_tokens=64, batch=2)
    cond = encoder(PROMPTS)
    states, mask = padded_reference(model, tokenizer, PROMPTS)
    assert cond.lengths == tuple(mask.sum(1).tolist())
    assert cond.states.shape == (sum(cond.lengths), 3, 32)
    assert states[mask].std() > 0.5
    assert (cond.states - states[mask]).abs().max() <= tolerance * states[mask].abs().max()


def test_a_prompt_does_not_depend_on_its_batch(model, tokenizer):
    encoder = Qwen3VLEncoder(model, tokenizer, taps=TINY_TAPS)
    together = encoder(PROMPTS)
    for prompt, states in zip(PROMPTS, together.states.split(list(together.lengths)), strict=True):
        assert (encoder([prompt]).states - states).abs().max() <= 1e-5


def test_a_leading_newline_joins_the_prefix_and_an_empty_prompt_is_the_suffix(model, tokenizer):
    encoder = Qwen3VLEncoder(model, tokenizer, taps=TINY_TAPS)
    prefix, suffix = tokenizer(PREFIX).input_ids, tokenizer(SUFFIX).input_ids
    assert encoder.tokens("") == prefix + suffix
    assert encoder([""]).lengths == (len(suffix),)
    assert encoder.tokens("\nfoo")[: len(prefix)] != prefix
    assert encoder.tokens("\nfoo")[: len(prefix) - 1] == prefix[:-1]


def test_a_prompt_that_is_too_long_is_cut_as_in_diffusers_and_it_is_said(model, tokenizer, caplog):
    encoder = Qwen3VLEncoder(model, tokenizer, taps=TINY_TAPS, max_tokens=24)
    prompt = "a red cat and the sea and a red cat and the sea and a red cat and the last words"
    with caplog.at_level(logging.WARNING):
        cond = encoder([prompt])
    assert cond.lengths == (24,)
    assert "tokens too long" in caplog.text
    assert "last words" in caplog.text
    cut = encoder.cut(prompt)
    assert prompt.endswith(cut)
    assert "last words" in cut
    assert tokenizer(PREFIX + prompt.removesuffix(cut)).input_ids + tokenizer(SUFFIX).input_ids == encoder.tokens(
        prompt
    )
    assert encoder.cut("a red cat") == ""
    states, mask = padded_reference(model, tokenizer, [prompt], 24)
    assert mask.all()
    assert (cond.states - states[0]).abs().max() <= 1e-5


def test_taps_are_the_hidden_states_of_the_prompt_alone(model, tokenizer):
    encoder = Qwen3VLEncoder(model, tokenizer, taps=range(7))
    ids = encoder.tokens("a red cat")
    with torch.no_grad():
        listed = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert len(listed) == 7
    states = encoder(["a red cat"]).states
    assert (states - torch.stack([one[0, -len(states) :] for one in listed], 1)).abs().max() <= 1e-6


def test_taps_are_outputs_of_decoder_layers(model, tokenizer):
    seen = []
    hook = model.language_model.layers[1].register_forward_hook(
        lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    encoder = Qwen3VLEncoder(model, tokenizer, taps=(2,))
    states = encoder(["a red cat"]).states
    hook.remove()
    layer = seen[0].reshape(-1, 32)
    assert torch.equal(states[:, 0], layer[-len(states) :])
    assert len(TAPS) == 12


def test_it_loads_from_an_encoder_folder_and_from_a_pipeline_folder(model, tokenizer, tmp_path):
    want = Qwen3VLEncoder(model, tokenizer, taps=TINY_TAPS)(["a red cat"])
    model.save_pretrained(tmp_path / "pipeline" / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "pipeline" / "tokenizer")
    index = {"text_encoder_select_layers": TINY_TAPS}
    (tmp_path / "pipeline" / "model_index.json").write_text(json.dumps(index))
    encoder = load(tmp_path / "pipeline", torch.float32)
    assert encoder.taps == TINY_TAPS
    assert torch.equal(encoder(["a red cat"]).states, want.states)
    with pytest.raises(ValueError, match="holds no text encoder"):
        load(tmp_path)
    (tmp_path / "pipeline" / "tokenizer" / "tokenizer.json").unlink()
    (tmp_path / "pipeline" / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer \(tokenizer.json\)"):
        load(tmp_path / "pipeline")


def test_another_model_a_part_of_one_and_pickled_weights_are_not_loaded(model, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    weights = {name: t.clone() for name, t in load_file(tmp_path / "model.safetensors").items()}  # the file is replaced
    lost = next(name for name in weights if "layers.3.mlp.up_proj" in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights, first .*layers\.3\.mlp\.up_proj"):
        load(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no text encoder"):
        load(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(ValueError, match="of type 'qwen3'; Krea 2 reads Qwen3-VL"):
        load(tmp_path)


def test_it_can_be_converted_and_moved(model, tokenizer):
    encoder = Qwen3VLEncoder(copy.deepcopy(model), tokenizer, taps=TINY_TAPS)
    before = encoder(["a red cat"]).states
    half = encoder.to(dtype=torch.bfloat16)(["a red cat"]).states
    assert half.dtype == torch.bfloat16
    assert 0 < (half.float() - before).abs().max() < 0.2
    assert encoder.to("meta").device.type == "meta"


def test_a_bare_string_and_no_prompts_are_errors(model, tokenizer):
    encoder = Qwen3VLEncoder(model, tokenizer, taps=TINY_TAPS)
    for wrong in ("a red cat", []):
        with pytest.raises(ValueError, match="give a list that holds at least one string"):
            encoder(wrong)


def test_settings_that_cannot_work_are_errors(model, tokenizer):
    with pytest.raises(ValueError, match=r"taps \(2, 5, 8, .* of an encoder with 6 layers"):
        Qwen3VLEncoder(model, tokenizer)
    with pytest.raises(ValueError, match="max_tokens 3 leaves no room for a prompt"):
        Qwen3VLEncoder(model, tokenizer, taps=TINY_TAPS, max_tokens=3)


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "krea_model.text")
    with pytest.raises(ImportError, match=r"krea-model\[text\]"):
        importlib.import_module("krea_model.text")


def test_it_needs_no_diffusers():
    code = "import sys; sys.modules['diffusers'] = None; import krea_model.t5, krea_model.text"
    subprocess.run([sys.executable, "-c", code], check=True)
