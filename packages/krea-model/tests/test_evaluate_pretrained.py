import importlib
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from krea_model import evaluate
from krea_model.evaluate.encoders import preparation
from krea_model.evaluate.interfaces import Joint
from krea_model.evaluate.pretrained import joint, vision
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

PROMPTS = ["a red cat", "the sea", "a red sea and a cat"]
TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def pictures(count: int, height: int, width: int) -> Tensor:
    """Smooth random pictures."""
    coarse = torch.rand(count, 3, 6, 7, generator=torch.Generator().manual_seed(height * width)) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8)


def words(folder, window: int) -> None:
    """One token per word, with a beginning and an end as CLIP has them; the end is the highest number."""
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<pad>", "a", "red", "cat", "the", "sea", "and", "<s>", "</s>"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=window
    ).save_pretrained(folder)


def prepared(folder, **settings) -> None:
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "resample": 3, **settings})
    )


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**TINY, image_size=28, patch_size=7, initializer_range=0.2)).save_pretrained(folder)
    prepared(folder, size={"shortest_edge": 32}, do_center_crop=True, crop_size={"height": 28, "width": 28})
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    text = TINY | {"vocab_size": 10, "max_position_embeddings": 6, "bos_token_id": 8, "eos_token_id": 9}
    config = CLIPConfig(text_config=text, vision_config=TINY | {"image_size": 28, "patch_size": 7}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    prepared(folder, size=28, do_center_crop=True, crop_size=28)
    words(folder, 6)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(2)
    text = TINY | {"vocab_size": 10, "max_position_embeddings": 9, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config=TINY | {"image_size": 28, "patch_size": 7})
    SiglipModel(config).save_pretrained(folder)
    prepared(folder, size={"height": 28, "width": 28})
    words(folder, 9)
    return folder


@pytest.mark.parametrize("size", [(40, 57), (57, 40), (31, 31), (28, 28), (25, 90)])
@pytest.mark.parametrize("kind", ["dino", "clip", "siglip"])
def test_pictures_are_prepared_as_transformers_prepares_them_with_pillow(kind, size, request, tmp_path):
    file = request.getfixturevalue(kind) / "preprocessor_config.json"
    name = {"dino": "bit", "clip": "clip", "siglip": "siglip"}[kind]
    try:  # transformers 5 has kept the processors that work with Pillow under another name
        module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    except ImportError:
        module = importlib.import_module(f"transformers.models.{name}.image_processing_{name}")
    found = [v for k, v in vars(module).items() if k.endswith(("ImageProcessorPil", "ImageProcessor"))]
    processor = next(v for v in found if v.__module__ == module.__name__)(**json.loads(file.read_text()))
    images = pictures(3, *size)
    photos = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in images]
    want = torch.from_numpy(np.stack(processor(photos).pixel_values))
    got = preparation(file)(images)
    assert got.shape == want.shape
    level = 1 / 255 / 0.26
    assert (got - want).abs().max() <= 2.02 * level
    assert (got - want).abs().mean() <= (0.2 if size == (57, 40) else 0.01) * level  # Pillow 13 may do rows first


def test_dino_features_are_its_pooled_output(dino):
    images = pictures(5, 40, 57)
    embedder = vision(dino, batch=2)
    found = embedder(images)
    model = Dinov2Model.from_pretrained(dino).eval()
    with torch.no_grad():
        want = model(pixel_values=preparation(dino / "preprocessor_config.json")(images)).pooler_output
    assert found.shape == (5, 32)
    assert torch.allclose(found, want, atol=1e-5)
    assert found.std(0).min() > 1e-4
    assert torch.allclose(evaluate.embed(images.split(3), embedder), found, atol=1e-5)


def test_clip_cosines_are_its_logits(clip, caplog):
    encoder: Joint = joint(clip, batch=2)
    images = pictures(4, 40, 57)
    rows, columns = encoder.images(images), encoder.texts(PROMPTS[:2])
    assert not caplog.records
    model = CLIPModel.from_pretrained(clip).eval()
    pixels = preparation(clip / "preprocessor_config.json")(images)
    places = evaluate.retrieval_rank(rows, columns, [0, 1, 0, 1])
    for prompt, ids in enumerate([[8, 2, 3, 4, 9], [8, 5, 6, 9]]):  # alone, without padding
        with torch.no_grad():
            logits = (
                model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits_per_image / model.logit_scale.exp()
            )
        cosines = torch.nn.functional.cosine_similarity(rows, columns[prompt : prompt + 1])
        assert torch.allclose(cosines, logits[:, 0], atol=1e-5)
        assert torch.allclose(places.similarity[prompt::2].float(), logits[prompt::2, 0], atol=1e-5)
    encoder.texts(PROMPTS)
    assert "1 of 1 prompts are longer than the encoder's 6 tokens" in caplog.text


def test_siglip_reads_full_windows_and_only_its_vision_half_can_be_used(siglip):
    encoder = joint(siglip)
    model = SiglipModel.from_pretrained(siglip).eval()
    ids = torch.tensor([[8, 2, 3, 4, 9, 1, 1, 1, 1]])
    images = pictures(2, 28, 28)
    pixels = preparation(siglip / "preprocessor_config.json")(images)
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels)
    assert torch.allclose(torch.nn.functional.normalize(encoder.texts(["a red cat"])), out.text_embeds, atol=1e-5)
    assert torch.allclose(vision(siglip)(images), out.vision_model_output.pooler_output, atol=1e-5)


def test_bad_folders_are_said(dino, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        vision(tmp_path)
    with pytest.raises(ValueError, match="dinov2 model, which reads no text"):
        joint(dino)
    prepared(tmp_path, size={"longest_edge": 30})
    with pytest.raises(ValueError, match="only shortest_edge"):
        preparation(tmp_path / "preprocessor_config.json")
    prepared(tmp_path, size=30)
    stated = json.loads((tmp_path / "preprocessor_config.json").read_text()) | {"resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match="filter 2"):
        preparation(tmp_path / "preprocessor_config.json")
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "krea_model.evaluate.pretrained")
    with pytest.raises(ImportError, match=r"krea-model\[text\]"):
        importlib.import_module("krea_model.evaluate.pretrained")
