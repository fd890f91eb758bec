from pathlib import Path

import pytest
import torch
from krea_train.average import Average, constant, exponent, merge, power
from safetensors.torch import save_file
from torch import Tensor, nn


def path(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, generator=generator) for _ in range(steps)]


def follow(average: Average, model: nn.Linear, weights: list[Tensor]) -> Tensor:
    for step, w in enumerate(weights, 1):
        with torch.no_grad():
            model.weight.copy_(w)
        average.update(step)
    return average.weights["weight"]


def test_a_power_average_has_the_closed_form_profile():
    model = nn.Linear(3, 2, bias=False)
    steps, gamma = 200, 6.0
    out = follow(Average(model, power(gamma)), model, path(steps)).double()
    n = torch.arange(1, steps + 1, dtype=torch.float64)
    decay = (1 - 1 / n) ** (gamma + 1)
    after = torch.flip(torch.cumprod(torch.flip(torch.cat([decay[1:], decay.new_ones(1)]), [0]), 0), [0])
    expected = sum(((1 - decay) * after)[i] * w.double() for i, w in enumerate(path(steps)))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    profile = ((1 - decay) * after) / (n**gamma / (n**gamma).sum())
    assert profile[-50:].sub(1).abs().max() < 0.05  # the paper's profile is t^gamma


def test_a_constant_average_is_a_mean_at_first():
    model = nn.Linear(3, 2, bias=False)
    out = follow(Average(model, constant(0.9)), model, path(5))
    torch.testing.assert_close(out, torch.stack(path(5)).mean(0))
    out = follow(Average(model, constant(0.0)), model, path(7))
    assert torch.equal(out, path(7)[-1])


def test_every_third_step_uses_the_decay_of_three():
    model = nn.Linear(3, 2, bias=False)
    weights = path(9)
    average = Average(model, constant(0.5), every=3)
    expected = weights[2]  # the first decay is 0: nothing of the initial weights is kept
    for w in (weights[5], weights[8]):
        expected = expected + (1 - 0.5**3) * (w - expected)
    torch.testing.assert_close(follow(average, model, weights), expected)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.972), (0.10, 6.937)])
def test_widths_of_the_paper(width: float, gamma: float):
    assert exponent(width) == pytest.approx(gamma, abs=1e-3)
    g = exponent(width)
    assert (g + 1) / ((g + 2) ** 2 * (g + 3)) == pytest.approx(width**2)


@pytest.mark.parametrize("call", [lambda: constant(1.0), lambda: power(-1.0), lambda: exponent(0.5)])
def test_impossible_memories_are_refused(call: object):
    with pytest.raises(ValueError, match=r"outside|negative"):
        call()  # type: ignore[operator]


def test_applied_swaps_the_weights_and_gives_them_back():
    model = nn.Linear(3, 2)
    own = model.weight.detach().clone()
    average = Average(model, constant(0.9))
    average.weights["weight"].add_(1)

    def fail() -> None:
        with average.applied():
            assert torch.equal(model.weight, own + 1)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(model.weight, own)


def test_bf16_models_are_averaged_in_fp32():
    model = nn.Linear(3, 2, bias=False).bfloat16()
    average = Average(model, constant(0.999))
    before = average.weights["weight"].clone()
    average.update(1000)
    assert average.weights["weight"].dtype == torch.float32
    with torch.no_grad():
        model.weight.add_(1)
    average.update(1001)
    assert 5e-4 < (average.weights["weight"] - before).mean() < 2e-3


def test_state_and_drop():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    a, b = Average(model, constant(0.9)), Average(other, constant(0.9))
    b.load_state_dict(a.state_dict())
    assert torch.equal(b.weights["weight"], model.weight)
    a.drop("bias")
    assert list(a.state_dict()) == ["weight"]
    a.update(1)
    with pytest.raises(ValueError, match="another model"):
        b.load_state_dict(a.state_dict())


def write(folder: Path, tensors: list[dict[str, Tensor]]) -> list[Path]:
    paths = [folder / f"{i}.safetensors" for i in range(len(tensors))]
    for file, part in zip(paths, tensors, strict=True):
        save_file(part, file)
    return paths


def test_merging_equal_files_changes_no_bit(tmp_path: Path):
    w = torch.randn(50, 50, generator=torch.Generator().manual_seed(1))
    for weights in (None, [0.3, 0.3, 0.4]):
        out = merge(write(tmp_path, [{"w": w}] * 3), weights)
        assert torch.equal(out["w"], w)


def test_merging_is_the_weighted_mean_in_fp32(tmp_path: Path):
    tensors = [{"w": w.bfloat16()} for w in path(4)]
    files = write(tmp_path, tensors)
    exact = torch.stack([part["w"].double() for part in tensors])
    assert merge(files)["w"].dtype == torch.float32
    torch.testing.assert_close(merge(files)["w"].double(), exact.mean(0), rtol=0, atol=1e-6)
    linear = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    expected = (exact * (linear / 10)[:, None, None]).sum(0)
    torch.testing.assert_close(merge(files, [1, 2, 3, 4])["w"].double(), expected, rtol=0, atol=1e-6)


def test_merging_different_models_is_refused(tmp_path: Path):
    files = write(tmp_path, [{"w": torch.zeros(1)}, {"w": torch.zeros(1), "b": torch.zeros(1)}])
    with pytest.raises(ValueError, match=r"1 names differ \('b'\)"):
        merge(files)
    with pytest.raises(ValueError, match="3 weights"):
        merge(files, [1.0, 1.0, 1.0])
