"""Other precisions than fp32 against diffusers (checks 3 and 17 to 19)."""

import pytest
import torch
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from krea_model import weights
from krea_model.configs import tiny
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers
from krea_model.testing import tiny_model

NORMS = {"norm", "norm1", "norm2", "norm_q", "norm_k"}  # modules that diffusers keeps in fp32


@pytest.fixture
def halves(tmp_path):
    """A function: our model -> it and diffusers' in bf16, each loaded as its own loader does it."""

    def load(model: MMDiT) -> tuple[MMDiT, Krea2Transformer2DModel]:
        weights.save_diffusers(tmp_path, model.state_dict(), model.config)
        theirs = Krea2Transformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        assert isinstance(theirs, Krea2Transformer2DModel)
        return weights.load(tmp_path, dtype=torch.bfloat16), theirs.eval()

    return load


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # in diffusers
def test_in_float64_norms_rotations_and_sinusoids_stay_in_fp32(inputs, twin, one_by_one, within):  # check 3
    single = tiny_model(0, tiny())
    model, other = tiny_model(0, tiny()).double(), twin(single).double()
    x, t, cond, grids = inputs(tiny(), [9, 4], [(3, 5), (2, 2)])
    with torch.no_grad():
        got, want = (run(*doubled(x, t, cond, grids)) for run in (model, lambda *a: one_by_one(other, *a)))
        low = single(x, t, cond, grids)
    assert got.dtype == want.dtype == torch.float64
    within("3", (got - want).abs().max(), 5e-6)
    assert 0 < (got - low).abs().max() < 1e-4


def doubled(x, t, cond, grids):
    return x.double(), t, Conditioning(cond.states.double(), cond.lengths), grids


@pytest.mark.parametrize("seed", range(8))
def test_bf16_differs_from_diffusers_by_rounding(seed, drawn, inputs, halves, one_by_one, within):  # check 17
    config, lengths, grids = drawn(seed)
    model, other = halves(tiny_model(seed, config))
    x, t, cond, grids = inputs(config, lengths, grids, seed)
    t = t.bfloat16().float()
    args = (x.bfloat16(), t, Conditioning(cond.states.bfloat16(), cond.lengths), grids)
    with torch.no_grad():
        got, want = model(*args), one_by_one(other, *args)
    assert got.dtype == want.dtype == torch.bfloat16
    diff = (got.float() - want.float()).abs() / want.float().std()
    within("17, mean", diff.mean(), 2e-3)
    within("17, max", diff.max(), 0.03)


def test_a_bf16_load_keeps_fp32_where_diffusers_does(halves, within):  # check 18
    model, other = halves(tiny_model(0, tiny()))
    ours = {to_diffusers(name): p.dtype for name, p in model.named_parameters()}
    assert ours == {name: p.dtype for name, p in other.named_parameters()}
    kept = {name for name, dtype in ours.items() if dtype == torch.float32}
    assert kept == {name for name in ours if name.split(".")[-2] in NORMS}
    assert {dtype for name, dtype in ours.items() if name not in kept} == {torch.bfloat16}
    tables = [name for name in ours if name.endswith("scale_shift_table")]
    assert len(tables) == 3
    within("18, parameters of another type", sum(name in kept for name in tables), 0)


def test_the_time_is_taken_as_given(inputs, halves, twin, one_by_one, within):  # check 19
    single = tiny_model(0, tiny())
    pairs = [(single, twin(single), torch.float32, 5e-6), (*halves(single), torch.bfloat16, 0.03)]
    x, _, cond, grids = inputs(tiny(), [9, 4], [(3, 5), (2, 2)])
    t = torch.tensor([0.7371, 0.2103])
    for model, other, dtype, bar in pairs:
        args = (Conditioning(cond.states.to(dtype), cond.lengths), grids)
        with torch.no_grad():
            ours = [model(x.to(dtype), time, *args).float() for time in (t, t.bfloat16(), t.bfloat16().float())]
            theirs = [one_by_one(other, x.to(dtype), time, *args).float() for time in (t, t.bfloat16())]
        assert torch.equal(ours[1], ours[2])
        assert (ours[0] - ours[1]).abs().max() > 0.3
        for got, want in zip(ours[:2], theirs, strict=True):
            within(f"19, {str(dtype).removeprefix('torch.')}", (got - want).abs().max(), bar)
