import pytest
import torch
import torch.nn.functional as F
from krea_model.configs import tiny
from krea_model.lora import (
    ALL,
    ATTENTION,
    Adapted,
    LowRank,
    add,
    attach,
    detach,
    extract,
    fold_in,
    rescale,
    restore,
    stack,
)
from krea_model.mmdit import MMDiT
from krea_model.names import linears
from krea_model.testing import FakeTextEncoder, tiny_model
from torch import nn

COND = FakeTextEncoder()(["a red cat", "sky"])
GRIDS = [(2, 3), (1, 4)]
X = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.3, 0.8])


def random_lora(seed: int, names: list[str], alpha: float = 2.0, rank: int = 4) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: m.weight.shape for name, m in tiny_model(0, tiny()).named_modules() if isinstance(m, nn.Linear)}
    return {
        name: LowRank(
            a=torch.randn(rank, shapes[name][1], generator=generator) / shapes[name][1] ** 0.5,
            b=torch.randn(shapes[name][0], rank, generator=generator) / 4,
            alpha=alpha,
        )
        for name in names
    }


def run(model: MMDiT) -> torch.Tensor:
    with torch.no_grad():
        return model(X, T, COND, GRIDS)


@pytest.fixture
def model() -> MMDiT:
    return tiny_model(1, tiny())


def test_a_fresh_adapter_changes_nothing_and_trains_alone(model):
    before = run(model)
    parameters = add(model, rank=2, alpha=4)
    assert torch.equal(run(model), before)
    assert len(parameters) == 2 * len(linears(2))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.lora_{side}" for name in linears(2) for side in "AB"
    }
    optimizer = torch.optim.SGD(parameters, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(X, T, COND, GRIDS).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)
    assert not torch.equal(run(model), before)


def test_fresh_adapters_depend_on_the_seed_alone():
    drawn = [extract_fresh(seed) for seed in (1, 1, 2)]
    name = "blocks.1.attn.wo"
    assert torch.equal(drawn[0][name].a, drawn[1][name].a)
    assert not torch.equal(drawn[0][name].a, drawn[2][name].a)
    assert drawn[0][name].a.abs().max() <= 1 / 8


def extract_fresh(seed: int) -> dict[str, LowRank]:
    model = tiny_model(0, tiny())
    add(model, rank=2, seed=seed)
    return extract(model)


def test_a_layer_with_an_adapter_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(6, 5)
    a, b, x = (torch.randn(s, generator=generator) for s in ((3, 6), (5, 3), (7, 6)))
    layer = Adapted(linear, LowRank(a=a, b=b, alpha=1.5), strength=0.5)
    want = F.linear(x, linear.weight + 0.5 * 1.5 / 3 * b @ a, linear.bias)
    assert torch.allclose(layer(x), want, atol=1e-6)
    half = Adapted(linear.bfloat16(), LowRank(a=a, b=b, alpha=1.5))
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_attaching_and_folding_in_agree_and_both_are_undone_bit_for_bit(model):
    before, weights = run(model), {name: p.clone() for name, p in model.named_parameters()}
    lora = random_lora(0, linears(2))
    attach(model, lora, 0.7)
    attached = run(model)
    rescale(model, 0)
    assert torch.equal(run(model), before)
    taken = detach(model)
    assert taken.keys() == lora.keys()
    assert all(torch.equal(taken[name].b, lora[name].b) for name in lora)
    assert torch.equal(run(model), before)
    kept = fold_in(model, lora, 0.7)
    folded = run(model)
    assert (attached - before).abs().max() > 0.05
    assert (attached - folded).abs().max() < 2e-5
    restore(model, kept)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert not any(isinstance(m, Adapted) for m in model.modules())


def test_folding_into_bf16_rounds_once_and_comes_back_exactly(model):
    lora = random_lora(0, ["blocks.0.attn.wq"])
    model = model.bfloat16()
    weight = model.get_parameter("blocks.0.attn.wq.weight")
    old = weight.detach().clone()
    kept = fold_in(model, lora)
    assert torch.equal(weight, (old.float() + lora["blocks.0.attn.wq"].delta()).bfloat16())
    restore(model, kept)
    assert torch.equal(weight, old)


def test_stacked_adapters_add_up(model):
    one, two = random_lora(1, linears(2)[:20], 8.0), random_lora(2, linears(2)[10:], 1.0, rank=3)
    both = stack([(one, 0.5), (two, -1.5)])
    name = linears(2)[15]
    want = 0.5 * one[name].delta() - 1.5 * two[name].delta()
    assert torch.allclose(both[name].delta(), want, atol=1e-6)
    assert both[name].rank == 7
    attach(model, both)
    together = run(model)
    detach(model)
    fold_in(model, one, 0.5)
    fold_in(model, two, -1.5)
    assert (together - run(model)).abs().max() < 1e-4


def test_stacking_loras_of_different_types_rounds_nothing(model):
    one = random_lora(1, ["blocks.0.attn.wq", "first"], 3.0)
    half = {n: LowRank(a=x.a.bfloat16(), b=x.b.bfloat16(), alpha=3.0) for n, x in random_lora(2, list(one)).items()}
    both = stack([(one, 0.3), (half, 0.7)])
    for name, adapter in both.items():
        want = 0.3 * one[name].delta() + 0.7 * half[name].delta()
        assert (adapter.delta() - want).abs().max() <= 1e-6 * want.abs().max()
    attach(model, both)
    assert run(model).isfinite().all()
    alone = stack([(half, 0.7)])
    assert {adapter.b.dtype for adapter in alone.values()} == {torch.float32}


def test_targets_select_by_the_end_of_the_name(model):
    assert len(add(model, ATTENTION, rank=1)) == 2 * 5 * 6
    assert not any("mlp.gate" in name for name in extract(model))
    with torch.device("meta"):
        big = MMDiT(tiny())
    with pytest.raises(ValueError, match=r"targets \['to_q'\] match no linear layer"):
        add(big, ["wq", "to_q"])
    with pytest.raises(ValueError, match="match no linear layer"):
        add(big, [])
    with pytest.raises(ValueError, match="rank 0"):
        add(big, rank=0)
    assert "first" in ALL


def test_a_lora_that_does_not_fit_raises_before_it_changes_anything(model):
    good, before = random_lora(0, linears(2)[:3]), run(model)
    wide = good | {"blocks.0.attn.wq": LowRank(a=torch.ones(2, 65), b=torch.ones(64, 2), alpha=2)}
    alien = good | {"blocks.7.attn.wq": LowRank(a=torch.ones(2, 64), b=torch.ones(64, 2), alpha=2)}
    for bad, said in ((wide, r"wq \(64, 65\) where"), (alien, "blocks.7.attn.wq.*no such layer"), ({}, "it is empty")):
        for use in (attach, fold_in):
            with pytest.raises(ValueError, match=said):
                use(model, bad)
    assert torch.equal(run(model), before)
    attach(model, good)
    with pytest.raises(ValueError, match="has an adapter already"):
        attach(model, good)
    detach(model)
    with pytest.raises(ValueError, match="no adapters to scale"):
        rescale(model, 1)
    with pytest.raises(ValueError, match="do not multiply"):
        LowRank(a=torch.ones(2, 3), b=torch.ones(3, 4), alpha=1)
