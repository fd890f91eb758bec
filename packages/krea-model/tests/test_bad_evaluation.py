"""Pictures, features and settings of encoders that cannot be evaluated, each said in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from krea_model import evaluate as ev
from krea_model.evaluate.encoders import preparation
from safetensors.torch import save_file
from torch import Tensor

PICTURES = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c"] * 2


def encoder(images: Tensor) -> Tensor:
    return images.float().flatten(1)[:, :6]


REFERENCE = ev.gather([PICTURES], {"e": encoder})
ENCODERS = ev.Encoders(vision={"e": encoder})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompts": "abcabc"}, "no lists; give batches of pictures, and a list of strings"),
        ({"images": PICTURES}, "no lists; give batches of pictures"),
        ({"prompts": [1] * 6}, "a list of strings"),
        ({"images": [PICTURES.float()]}, r"in torch\.float32; give \(count, 3, H, W\) in uint8"),
        ({"seed": "x"}, "a seed is 'x'"),
        ({"encoders": ev.Encoders(vision={"e": lambda x: x.float().mean((1, 2, 3))})}, r"features of shape \(6,\)"),
        ({"reference": {"e": ev.Features.of(torch.rand(9, 4))}}, "features of width 6 and 4"),
    ],
)
def test_what_cannot_be_evaluated(wrong: dict[str, Any], says: str) -> None:
    given = {"images": [PICTURES], "prompts": PROMPTS, "reference": REFERENCE, "encoders": ENCODERS} | wrong
    with pytest.raises(ValueError, match=says):
        ev.evaluate(**given)


def test_features_and_intervals_of_nothing() -> None:
    a, one = torch.rand(5, 2), torch.ones(2)
    wrong: list[tuple[Any, str]] = [
        (lambda: ev.embed([], encoder), "no pictures to embed"),
        (lambda: ev.gather([PICTURES], {"e": encoder}, keep=0), "keep is 0"),
        (
            lambda: ev.Features.of(a).merge(ev.Features.of(torch.rand(3, 4))),
            "width 2 and 4; merge those of one encoder",
        ),
        (lambda: ev.precision_recall(a, a, neighbours=0), "neighbours are 0"),
        (lambda: ev.kernel_estimate(a, a, repeats=0), "repeats are 0"),
        (lambda: ev.bootstrap(one, [0, 1], lambda v: float(v.mean()), repeats=0), "repeats are 0"),
        (lambda: ev.bootstrap(one, [-1, 0], lambda v: float(v.mean())), "a group from 0 on for each"),
        (lambda: ev.retrieval_rank(a, a, [0.0] * 5), "give one row of the prompts for each picture"),  # pyright: ignore[reportArgumentType]
        (lambda: ev.ModuleEmbedder(encoder, encoder, "gpu"), "device 'gpu' is unknown"),
        (lambda: ev.ModuleEmbedder(encoder, encoder, batch=0), "batch is 0"),
    ]
    for call, says in wrong:
        with pytest.raises(ValueError, match=says):
            call()


def test_features_of_nothing_are_alike_and_those_that_are_no_numbers_are_refused() -> None:
    zeros, one = torch.zeros(3, 4), torch.tensor([[0.0, 2.0, 0.0, 0.0]])
    assert ev.diversity(zeros, ["a"] * 3) == {"a": 0}
    assert ev.diversity(torch.cat([zeros[:1], one]), ["a"] * 2) == {"a": pytest.approx(1)}
    assert ev.vendi(zeros) == pytest.approx(1)
    assert ev.vendi(torch.cat([zeros, one, one, one])) == pytest.approx(2)
    bad = torch.cat([one, torch.full((1, 4), float("nan"))])
    for score in (lambda: ev.diversity(bad, ["a", "a"]), lambda: ev.vendi(bad)):
        with pytest.raises(ValueError, match="features of picture 1 are not finite"):
            score()


@pytest.mark.parametrize("head", ["5", "{", "[]", "{}", '{"format": "krea-features/1"}'])
def test_files_of_features_that_are_none(tmp_path: Path, head: str) -> None:
    tensors = {name: torch.zeros(2, 2) for name in ("mean", "scatter", "kept", "keys")}
    save_file(tensors, tmp_path / "f", {"features": head})
    with pytest.raises(ValueError, match=r"gather the features anew|does not hold features|holds features of None"):
        ev.load(tmp_path / "f", "label")


def test_files_of_features_that_contradict_themselves(tmp_path: Path) -> None:
    tensors = {"mean": torch.zeros(2), "scatter": torch.zeros(3, 3), "kept": torch.zeros(1, 2), "keys": torch.zeros(1)}
    for count, scatter in (("x", 2), (0, 2), (5, 3)):
        head = {"format": "krea-features/1", "label": "l", "count": count}
        save_file(tensors | {"scatter": torch.zeros(scatter, scatter)}, tmp_path / "f", {"features": json.dumps(head)})
        with pytest.raises(ValueError, match="contradicts itself"):
            ev.load(tmp_path / "f", "l")
    with pytest.raises(ValueError, match="does not exist; gather the features"):
        ev.load(tmp_path / "nothing", "l")


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ([], "is damaged"),
        ({"size": "x"}, "has size x; only shortest_edge"),
        ({"size": [1]}, "has size"),
        ({"size": {"shortest_edge": "a"}}, r"has sides \['a'\]; they must be whole numbers"),
        ({"size": 0}, r"has sides \[0\]"),
        ({"size": {"height": None, "width": 4}}, r"has sides \[None, 4\]"),
        ({"size": 224, "do_center_crop": True, "crop_size": {}}, r"has sides \[224, None\]"),
        ({"size": 224, "do_center_crop": True, "crop_size": 300}, "a crop no larger than the picture"),
        ({"size": 224, "image_mean": [1]}, "image_mean .* a number for each of the three colours"),
        ({"size": 224, "image_mean": "abc"}, "image_mean abc"),
        ({"size": 224, "image_std": [0, 0, 0]}, "image_std .* a number above 0 for each of the three colours"),
    ],
)
def test_settings_of_an_encoder_that_cannot_be(tmp_path: Path, stated: Any, says: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=says):
        preparation(tmp_path / "p.json")
    with pytest.raises(ValueError, match="does not exist"):
        preparation(tmp_path / "none.json")
