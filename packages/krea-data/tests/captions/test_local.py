"""A model of a few thousand random weights, made here, in the shape of a real one: what matters is the way through."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from krea_data import Row
from krea_data.captions.asking import Question
from krea_data.tasks.describe import Describe
from krea_data.testing import MemoryBlobs, picture
from PIL import Image

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}"
    "{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with the letters of bytes as its tokens."""
    import tokenizers
    import torch
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<image>", *letters])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special: Any = {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "<s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, additional_special_tokens=["<image>"], **special
    )
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    small: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=16, **small)
    text = transformers.LlamaConfig(
        vocab_size=len(vocabulary), num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **small
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1
    )
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("models") / "tiny-vlm"
    model = transformers.LlavaForConditionalGeneration(config)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.6)  # so much that the picture makes a difference
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def test_a_local_model_answers_by_picture_and_prompt(folder: Path) -> None:
    from krea_data.captions.local import LocalChat

    chat = pickle.loads(pickle.dumps(LocalChat(folder, max_tokens=12, longest_px=32)))
    red = Question(system="be exact", text="what is it?", image=Image.new("RGB", (90, 40), "red"))
    noise = Question(system="be exact", text="what is it?", image=Image.effect_noise((90, 40), 90))
    plain = Question(system="be exact", text="what is it?")
    answers = chat([red, noise, plain])
    assert [bool(answer.text) or answer.failed == "empty" for answer in answers] == [True] * 3
    assert chat([red]) == answers[:1]
    assert chat.model == "tiny-vlm"
    assert len({answer.text for answer in answers}) > 1
    assert chat.patience_s(3) == 1800


def test_its_nonsense_is_the_rows_failure(folder: Path) -> None:
    from krea_data.captions.local import LocalChat

    blobs = MemoryBlobs()
    row = Row(id="a", blob=blobs.put(picture(1)), meta={"label": "apple"})
    (result,) = Describe(blobs=blobs, chat=LocalChat(folder, max_tokens=12), tries=1)([row])
    assert result.value["failed"] in ("too short", "empty", "language")
    assert (result.value["model"], result.drop) == ("tiny-vlm", None)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    from krea_data.captions.local import LocalChat

    with pytest.raises(ValueError, match="save one there"):
        LocalChat(tmp_path / "none")
