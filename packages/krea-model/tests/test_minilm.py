"""The demo's encoder against transformers' own padded way, and its reduction against scikit-free algebra."""

from pathlib import Path

import pytest
import torch
from krea_model.minilm import MiniLM, fit_reduction, folder
from krea_model.textcache import TextCache
from transformers import AutoTokenizer, BertModel

PROMPTS = ["red apple, flat style", "", "a drawing of a rocket in 3D style; with red and white", "frog"]


def test_states_equal_the_padded_batch_of_transformers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder(), local_files_only=True)
    model = BertModel.from_pretrained(folder(), local_files_only=True).eval()
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states
    ours = MiniLM()(PROMPTS)
    expected = torch.cat(
        [torch.stack([hidden[k][i][m.bool()] for k in (2, 4, 6)], 1) for i, m in enumerate(batch["attention_mask"])]
    )
    assert ours.lengths == tuple(batch["attention_mask"].sum(1).tolist())
    assert (ours.states - expected).abs().max() < 1e-5


def test_sentence_embeddings_know_what_is_alike() -> None:
    apple, green, rocket = MiniLM().embed(["red apple", "green apple", "rocket ship"])
    assert apple @ green > apple @ rocket + 0.2
    assert apple.norm().item() == pytest.approx(1, abs=1e-5)


def test_reduction_keeps_the_leading_components() -> None:
    states = torch.randn(500, 2, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9, 5, 1, 1, 1, 0.1])
    reduced = fit_reduction(states, 2)(states)
    assert reduced.shape == (500, 2, 2)
    assert reduced.square().mean((0, 2)) == pytest.approx([1, 1], rel=0.01)
    first = torch.corrcoef(torch.stack([reduced[:, 0, 0], states[:, 0, 0]]))[0, 1]
    assert first.abs() > 0.99
    with pytest.raises(ValueError, match="text width 7"):
        fit_reduction(states, 7)


def test_cache_gives_what_the_encoder_gave(tmp_path: Path) -> None:
    encoder = MiniLM()
    cache = TextCache.build("one", encoder, [*PROMPTS, PROMPTS[0]])
    cache.save(tmp_path / "states.safetensors")
    loaded = TextCache.load(tmp_path / "states.safetensors", "one")
    wanted = [PROMPTS[3], PROMPTS[0]]
    assert loaded(wanted).lengths == encoder(wanted).lengths
    assert (loaded(wanted).states - encoder(wanted).states).abs().max() < 1e-5
    with pytest.raises(ValueError, match="encoded by 'one', not 'two'"):
        TextCache.load(tmp_path / "states.safetensors", "two")


def test_what_was_cut_from_a_long_prompt_is_said(caplog):
    encode = MiniLM()
    prompt = "a red apple on a table " * 40 + "the very last words"
    assert encode([prompt]).lengths == (128,)
    assert caplog.text.count("tokens too long") == 1
    said = caplog.records[0].getMessage()
    assert said.endswith("the very last words'")
    ids = MiniLM().tokenizer
    ids.no_truncation()
    assert f"the prompt is {len(ids.encode(prompt).ids) - 128} tokens too long" in said
    caplog.clear()
    encode(["a red apple"])
    assert not caplog.records
