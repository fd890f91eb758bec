import copy
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from krea_model.interfaces import Conditioning, TextEncoder
from krea_model.t5 import T5Encoder
from krea_model.testing import FakeTextEncoder
from krea_model.textcache import CachedEncoder, prune
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

PROMPTS = ["a red cat", "", "a sea", "a red cat", "caf\u00e9 \udcff\n\0"]


class Counting:
    """An encoder that notes what it was asked, and answers in a number format of its own."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.asked: list[list[str]] = []
        self.dtype = dtype

    def __call__(self, prompts) -> Conditioning:
        self.asked.append(list(prompts))
        cond = FakeTextEncoder()([one.encode("utf-8", "replace").decode() for one in prompts])
        return Conditioning(cond.states.to(self.dtype), cond.lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_prompt_is_encoded_once_and_then_read(tmp_path, dtype):
    inner = Counting(dtype)
    want = inner(PROMPTS)
    inner.asked.clear()
    encoder: TextEncoder = CachedEncoder(inner, tmp_path, "fake")
    for again in (encoder, encoder, CachedEncoder(inner, tmp_path, "fake")):
        cond = again(PROMPTS)
        assert cond.lengths == want.lengths
        assert cond.states.dtype == dtype
        assert torch.equal(cond.states, want.states)
    encoder(["a dog", "a sea"])
    assert inner.asked == [["a red cat", "", "a sea", PROMPTS[-1]], ["a dog"]]
    assert not list(tmp_path.rglob("*.part"))


def test_another_encoder_never_hits(tmp_path):
    first, second = Counting(), Counting()
    CachedEncoder(first, tmp_path, "one")(["a sea"])
    CachedEncoder(second, tmp_path, "two")(["a sea"])
    assert first.asked == second.asked == [["a sea"]]
    here, there = (CachedEncoder(first, tmp_path, name).path("a sea") for name in ("one", "two"))
    there.write_bytes(here.read_bytes())  # even a file in the wrong place
    CachedEncoder(second, tmp_path, "two")(["a sea"])
    assert len(second.asked) == 2


def wrong_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def wrong_prompt(path: Path) -> None:
    other = path.parents[1]
    CachedEncoder(FakeTextEncoder(), other.parent, other.name)(["another"])
    path.write_bytes(CachedEncoder(FakeTextEncoder(), other.parent, other.name).path("another").read_bytes())


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "no safetensors": lambda path: path.write_bytes(b"\xff" * 300),
    "a flipped bit": wrong_bytes,
    "another tensor": lambda path: save_file({"other": torch.zeros(1)}, path),
    "another prompt": wrong_prompt,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_encoded_again_and_it_is_said(tmp_path, caplog, damage):
    inner = Counting()
    encoder = CachedEncoder(inner, tmp_path, "fake")
    want = encoder(["a sea"])
    damage(encoder.path("a sea"))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encoder(["a sea"]).states, want.states)
    assert "damaged and made again" in caplog.text
    assert str(encoder.path("a sea")) in caplog.text
    caplog.clear()
    assert torch.equal(encoder(["a sea"]).states, want.states)
    assert inner.asked == [["a sea"]] * 2
    assert caplog.text == ""


def test_where_nothing_can_be_written_it_still_encodes_and_says_so(tmp_path, caplog):
    (tmp_path / "fake").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        cond = CachedEncoder(FakeTextEncoder(), tmp_path, "fake")(["a sea"])
    assert torch.equal(cond.states, FakeTextEncoder()(["a sea"]).states)
    assert "not kept" in caplog.text


WORK = """
import sys, torch
from krea_model.testing import FakeTextEncoder
from krea_model.textcache import CachedEncoder, prune
folder, seed = sys.argv[1], int(sys.argv[2])
encoder = CachedEncoder(FakeTextEncoder(), folder, "fake")
for i in torch.randperm(40, generator=torch.Generator().manual_seed(seed)).tolist() * 5:
    prompt = [f"picture {i} of many"]
    assert torch.equal(encoder(prompt).states, FakeTextEncoder()(prompt).states)
    if i % 10 == seed:
        prune(folder, 5000)
"""


def test_several_processes_share_a_folder(tmp_path):
    running = [
        subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path), seed], stderr=subprocess.PIPE, text=True)
        for seed in "12"
    ]
    for process in running:
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0
    files = list(tmp_path.rglob("*.*"))
    assert files
    assert all(load_file(one)["states"].shape == (5, 3, 32) for one in files)


def grow_old(path: Path, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_the_longest_unused_are_pruned_until_the_rest_fits(tmp_path):
    inner = Counting()
    encoder = CachedEncoder(inner, tmp_path, "fake")
    encoder(["one", "two", "three"])
    for age, prompt in enumerate(["three", "two", "one"]):
        grow_old(encoder.path(prompt), 100 + age)
    encoder(["one"])  # a use makes it young
    size = encoder.path("one").stat().st_size
    foreign, left = tmp_path / "fake" / "ab" / "model.safetensors", tmp_path / "fake" / "ab" / f".{'0' * 32}.part"
    for path in (foreign, left):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10_000))
    assert prune(tmp_path, 2 * size) == size
    assert not encoder.path("two").exists()
    grow_old(left, 7200)
    assert prune(tmp_path, 2 * size) == 10_000
    assert prune(tmp_path, 0) == 2 * size
    assert list(tmp_path.rglob("*.*")) == [foreign]
    assert prune(tmp_path / "nothing here", 0) == 0


def test_states_go_where_they_are_wanted(tmp_path):
    inner = Counting()
    assert CachedEncoder(inner, tmp_path, "fake")(["a"]).states.device.type == "cpu"
    assert CachedEncoder(inner, tmp_path, "fake", device="meta")(["a"]).states.device.type == "meta"
    inner.device = "meta"  # pyright: ignore[reportAttributeAccessIssue]
    assert CachedEncoder(inner, tmp_path, "fake")(["a"]).states.device.type == "meta"


def test_an_encoder_may_be_loaded_when_it_is_needed(tmp_path):
    loads = []

    def late(prompts):
        loads.append(1)
        return FakeTextEncoder()(prompts)

    encoder = CachedEncoder(late, tmp_path, "fake")
    encoder(["a"])
    encoder(["a"])
    assert loads == [1]


@pytest.mark.parametrize("name", [None, "", "../up", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match="name of the encoder is"):
        CachedEncoder(FakeTextEncoder(), tmp_path, name)


@pytest.fixture(scope="module")
def t5() -> T5Encoder:
    words = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "sea": 2}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = T5Config(vocab_size=200, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=2)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="</s>", pad_token="</s>")
    return T5Encoder(T5EncoderModel(config).eval(), tokenizer)


def test_the_name_stays_when_only_place_and_batch_change(t5, tmp_path):
    t5.model.save_pretrained(tmp_path / "copy")
    model = T5EncoderModel.from_pretrained(tmp_path / "copy")
    moved = T5Encoder(model, copy.deepcopy(t5.tokenizer), batch=3)
    moved.tokenizer(["a", "a sea"], padding=True, truncation=True, max_length=5)
    assert moved.name == t5.name
    assert t5.name.startswith("t5-")
    encoder = CachedEncoder(t5, tmp_path)
    assert encoder.name == t5.name


def test_the_name_changes_with_weights_taps_window_format_config_and_vocabulary(t5):
    names = {t5.name}
    for key, _ in t5.model.named_parameters():
        model = copy.deepcopy(t5.model)
        with torch.no_grad():
            model.get_parameter(key).mul_(1.001)
        names.add(T5Encoder(model, t5.tokenizer).name)
    changed = len(names)
    assert changed == 1 + len(list(t5.model.parameters()))
    names.add(T5Encoder(t5.model, t5.tokenizer, taps=(1,)).name)
    names.add(T5Encoder(t5.model, t5.tokenizer, max_tokens=100).name)
    names.add(T5Encoder(copy.deepcopy(t5.model), t5.tokenizer).to(dtype=torch.bfloat16).name)
    model = copy.deepcopy(t5.model)
    model.config.layer_norm_epsilon = 1e-3
    names.add(T5Encoder(model, t5.tokenizer).name)
    tokenizer = copy.deepcopy(t5.tokenizer)
    tokenizer.add_tokens(["moon"])
    names.add(T5Encoder(t5.model, tokenizer).name)
    assert len(names) == changed + 5
