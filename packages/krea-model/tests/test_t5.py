import importlib
import json
import logging
import sys
from typing import Any

import pytest
import torch
from krea_model.interfaces import TextEncoder
from krea_model.t5 import T5Encoder, load
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    MT5Config,
    MT5EncoderModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)

PROMPTS = ["a red cat", "", "a longer prompt about a quiet sea and the moon over it", "the cat, the sea"]
SIZES: dict[str, Any] = {"vocab_size": 200, "d_model": 24, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 2}
MODELS = {"t5": (T5Config, T5EncoderModel), "umt5": (UMT5Config, UMT5EncoderModel), "mt5": (MT5Config, MT5EncoderModel)}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Pieces with a mark for spaces and `</s>` at the end, as T5 has them, learnt from a few lines."""
    words = Tokenizer(models.Unigram())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    words.train_from_iterator(PROMPTS * 5, trainer)
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def random_model(kind: str = "t5", **changes: int):
    config, model = MODELS[kind]
    torch.manual_seed(0)
    found = model(config(**(SIZES | {"feed_forward_proj": "gated-gelu", "initializer_factor": 1.0} | changes)))
    return found.eval()


@pytest.fixture(scope="module")
def model() -> T5EncoderModel:
    return random_model()


def padded(model, tokenizer, prompts, tokens=64):
    """States of all layers as transformers makes them: everything padded to one length, the padding masked."""
    batch = tokenizer(prompts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True).hidden_states
    return torch.stack(hidden, 2), batch.attention_mask.bool()


@pytest.mark.parametrize("kind", MODELS)
def test_natural_lengths_equal_the_masked_padded_batch_of_transformers(kind, tokenizer):
    model = random_model(kind)
    encoder: TextEncoder = T5Encoder(model, tokenizer, taps=range(4), batch=3)
    cond = encoder(PROMPTS)
    states, mask = padded(model, tokenizer, PROMPTS)
    assert cond.lengths == tuple(mask.sum(1).tolist())
    assert cond.lengths[1] == 1
    assert cond.states.shape == (sum(cond.lengths), 4, 24)
    assert states[mask].std() > 0.3
    assert (cond.states - states[mask]).abs().max() <= 1e-6 * max(10, states[mask].abs().max())


def test_the_last_layer_alone_is_the_default_and_normed(model, tokenizer):
    states = T5Encoder(model, tokenizer)(["a red cat"]).states
    ids = tokenizer(["a red cat"], return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(states[:, 0], model(ids).last_hidden_state[0], atol=1e-6)
    assert states.shape[1] == 1


def test_a_prompt_does_not_depend_on_its_batch(model, tokenizer):
    encoder = T5Encoder(model, tokenizer)
    together = encoder(PROMPTS)
    for prompt, states in zip(PROMPTS, together.states.split(list(together.lengths)), strict=True):
        assert (encoder([prompt]).states - states).abs().max() <= 1e-5


def test_a_prompt_that_is_too_long_is_cut_as_in_transformers_and_it_is_said(model, tokenizer, caplog):
    encoder = T5Encoder(model, tokenizer, taps=range(4), max_tokens=7)
    with caplog.at_level(logging.WARNING):
        cond = encoder([PROMPTS[2]])
    assert cond.lengths == (7,)
    cut = encoder.cut(PROMPTS[2])
    assert cut.endswith("over it")
    assert PROMPTS[2].endswith(cut)
    assert [r.getMessage() for r in caplog.records] == [
        f"the prompt is {len(tokenizer(PROMPTS[2]).input_ids) - 7} tokens too long; not encoded: {cut!r}"
    ]
    states, mask = padded(model, tokenizer, [PROMPTS[2]], 7)
    assert mask.all()
    assert (cond.states - states[0]).abs().max() <= 1e-5
    assert encoder.cut("a cat") == ""


def test_it_loads_from_its_own_folder_and_from_a_pipeline_folder(model, tokenizer, tmp_path):
    want = T5Encoder(model, tokenizer)(PROMPTS)
    pipeline = tmp_path / "pipeline"
    (pipeline / "text_encoder").mkdir(parents=True)
    (pipeline / "text_encoder" / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    model.save_pretrained(pipeline / "text_encoder_2")
    tokenizer.save_pretrained(pipeline / "tokenizer_2")
    assert torch.equal(load(pipeline, torch.float32)(PROMPTS).states, want.states)
    assert load(pipeline)(PROMPTS).states.dtype == torch.bfloat16

    torch.manual_seed(0)
    whole = T5ForConditionalGeneration(T5Config(**SIZES, feed_forward_proj="gated-gelu"))
    whole.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    found = load(tmp_path / "whole", torch.float32)
    assert torch.equal(found.model.shared.weight, whole.shared.weight)
    states, mask = padded(whole.get_encoder().eval(), tokenizer, PROMPTS)
    assert (found(PROMPTS).states - states[:, :, -1:][mask]).abs().max() <= 1e-5


def test_folders_that_cannot_be_used_are_errors(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"holds no T5 \(config.json of type t5, mt5, umt5"):
        load(tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path).taps == (3,)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_layers": 4}))
    with pytest.raises(ValueError, match=r"lacks weights, first encoder\.block\.3"):
        load(tmp_path)


def test_settings_that_cannot_work_are_errors(model, tokenizer):
    with pytest.raises(ValueError, match=r"taps \(4,\) of an encoder with 3 layers"):
        T5Encoder(model, tokenizer, taps=(4,))
    with pytest.raises(ValueError, match="max_tokens 1 leaves no room"):
        T5Encoder(model, tokenizer, max_tokens=1)
    with pytest.raises(ValueError, match="give a list"):
        T5Encoder(model, tokenizer)("a red cat")


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "krea_model.t5")
    with pytest.raises(ImportError, match=r"krea-model\[text\]"):
        importlib.import_module("krea_model.t5")
