from dataclasses import replace

import pytest
import torch
from krea_model.configs import Config, small, tiny
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_train.watch import Window, forward_flops, memory, train_flops
from torch.utils.flop_counter import FlopCounterMode

RAGGED = ([(4, 4), (2, 8), (6, 3)], (5, 1, 9))
EQUAL = ([(4, 4)] * 3, (7, 7, 7))


def count(config: Config, grids: list[tuple[int, int]], lengths: tuple[int, ...], *, backward: bool = False) -> int:
    with torch.device("meta"):
        model = MMDiT(config)
        cond = Conditioning(torch.empty(sum(lengths), config.txtlayers, config.txtdim), lengths)
        x = torch.empty(sum(h * w for h, w in grids), config.token_features)
        t = torch.empty(len(grids))
    with FlopCounterMode(display=False) as counter:
        out = model(x, t, cond, grids)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("batch", [RAGGED, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize(
    "config", [tiny(), small(), replace(tiny(), heads=2, kvheads=1, txtheads=2, txtkvheads=1, multiplier=3)]
)
def test_the_formula_is_torchs_count(config: Config, batch: tuple[list[tuple[int, int]], tuple[int, ...]]):
    assert forward_flops(config, *batch) == count(config, *batch)


def test_a_training_step_is_three_forwards_up_to_the_inputs_gradients():
    counted = count(tiny(), *EQUAL, backward=True)
    assert train_flops(tiny(), *EQUAL) == 3 * forward_flops(tiny(), *EQUAL)
    assert 0.9 < counted / train_flops(tiny(), *EQUAL) < 1.1


def test_a_window_means_what_was_a_number_and_forgets():
    window = Window()
    window.add({"a": torch.tensor(1.0), "b": torch.tensor(float("nan"))}, 4)
    window.add({"a": torch.tensor(3.0), "b": torch.tensor(5.0), "c": torch.tensor(7)}, 4)
    out = window.read()
    assert (out["a"], out["b"], out["c"]) == (2.0, 5.0, 7.0)
    assert out["images_per_s"] * out["step_s"] == pytest.approx(4, rel=1e-6)
    window.add({"a": torch.tensor(9.0)}, 1)
    assert window.read()["a"] == 9.0


def test_memory_grows_with_what_is_held():
    before = memory()["memory_bytes"]
    held = torch.ones(40_000_000)
    assert memory()["memory_bytes"] >= before
    assert memory()["memory_bytes"] > held.nbytes
