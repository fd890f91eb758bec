"""LoRAs that are for two models, damaged or no LoRAs at all, and strengths that are no numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from krea_model import lora
from krea_model.configs import tiny
from krea_model.lora import LowRank
from krea_model.lora_files import read, write
from krea_model.testing import tiny_model
from safetensors.torch import save_file


def adapter(out: int = 64, width: int = 16, rank: int = 2) -> LowRank:
    return LowRank(a=torch.ones(rank, width), b=torch.ones(out, rank), alpha=2.0)


@pytest.mark.parametrize("other", [adapter(out=128), adapter(width=32)])
def test_loras_of_two_models_do_not_stack(other: LowRank) -> None:
    said = rf"different models: first is \(64, 16\) in one and \({other.shape[0]}, {other.shape[1]}\) in another"
    with pytest.raises(ValueError, match=said):
        lora.stack([({"first": adapter()}, 1.0), ({"first": other}, 0.5)])


def test_stacks_of_nothing() -> None:
    for wrong in ([], [{"first": adapter()}]):
        with pytest.raises(ValueError, match="LoRAs to stack; give at least one, each as a pair"):
            lora.stack(wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "1", None])
def test_a_strength_that_is_no_number_changes_nothing(strength: Any) -> None:
    model, one = tiny_model(0, tiny()), {"first": adapter()}
    before = model.first.weight.clone()
    for use in (lora.attach, lora.fold_in, lambda *_: lora.stack([(one, strength)])):
        with pytest.raises(ValueError, match=r"strength is .*; give a number: 0 has no effect, 1 is as trained"):
            use(model, one, strength)
    assert torch.equal(model.first.weight, before)
    lora.attach(model, one)
    with pytest.raises(ValueError, match="strength is"):
        lora.rescale(model, strength)


@pytest.mark.parametrize("wrong", ["x.safetensors", {"first": torch.ones(2)}, None])
def test_what_is_no_lora(wrong: Any) -> None:
    for use in (lora.attach, lora.fold_in):
        with pytest.raises(ValueError, match=r"a LoRA of type .*; give adapters by layer, as `lora_files.read` does"):
            use(tiny_model(0, tiny()), wrong)


def test_weights_of_another_model_are_not_restored() -> None:
    model = tiny_model(0, tiny())
    kept = lora.fold_in(model, {"first": adapter()})
    folded = model.first.weight.clone()
    for wrong, said in (({"nope": torch.ones(2)}, "no such layer"), ({"last.linear": torch.ones(2, 2)}, r"\(16, 64\)")):
        with pytest.raises(ValueError, match=rf"where the model has .*{said}; give what `fold_in` returned"):
            lora.restore(model, kept | wrong)
        assert torch.equal(model.first.weight, folded)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rank": 1.5}, r"rank 1\.5 is no positive whole number"),
        ({"rank": "4"}, "rank '4' is no positive"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"alpha": "2"}, "alpha '2'"),
        ({"seed": 1.5}, r"a seed is 1\.5"),
    ],
)
def test_settings_of_fresh_adapters(wrong: dict[str, Any], says: str) -> None:
    settings: dict[str, Any] = {"rank": 2} | wrong
    with pytest.raises(ValueError, match=says):
        lora.add(tiny_model(0, tiny()), **settings)


@pytest.mark.parametrize("factor", [None, torch.ones(2, 3, dtype=torch.int32)])
def test_factors_that_are_no_numbers(factor: Any) -> None:
    with pytest.raises(ValueError, match="no tensors of floating-point numbers"):
        LowRank(a=factor, b=torch.ones(3, 2), alpha=1.0)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"first.lora_B.weight": torch.ones(64, 3)}, r"first: .* \(4, 16\) and \(64, 3\) do not multiply"),
        (
            {"first.lora_A.weight": torch.tensor(1.0)},
            r"first: low-rank factors of shapes \(\) and \(64, 4\); they must",
        ),
        ({"first.lora_A.weight": torch.ones(4, 16, 1, 1)}, r"first: .* shapes \(4, 16, 1, 1\) and"),
    ],
)
def test_ranks_that_disagree_inside_a_pair(tmp_path: Path, changed: dict[str, torch.Tensor], says: str) -> None:
    tensors = {"first.lora_A.weight": torch.ones(4, 16), "first.lora_B.weight": torch.ones(64, 4)}
    save_file(tensors | changed, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        *([], 5, {"lora_alpha": "x"}, {"lora_alpha": [1]}, {"lora_alpha": True}, {"lora_alpha": float("nan")}),
        *({"alpha_pattern": wrong} for wrong in (5, [1], {"(": 2}, {"first": "x"})),
    ],
)
def test_settings_of_peft_that_cannot_be(tmp_path: Path, settings: Any) -> None:
    tensors = {"first.lora_A.weight": torch.ones(4, 16), "first.lora_B.weight": torch.ones(64, 4)}
    save_file(tensors, tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"the PEFT settings of .* are damaged .*; get the file again"):
        read(tmp_path)


def test_what_is_no_lora_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give adapters by layer, at least one"):
        write(tmp_path / "a.safetensors", {"first": 5})  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())
