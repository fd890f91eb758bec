import copy
import math

import pytest
import torch
from krea_model.configs import tiny
from krea_model.mmdit import MMDiT
from krea_train.optim import AdamW, Muon, Optimizer, decays, is_hidden, orthogonalise, warmup_stable_decay
from torch import Tensor, nn


class Toy(nn.Module):
    """Wide, tall and square hidden matrices, and what Muon must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"mlp": nn.ModuleDict({"up": nn.Linear(8, 24, bias=False)})}) for _ in range(2)
        )
        self.blocks.append(nn.ModuleDict({"mlp": nn.ModuleDict({"down": nn.Linear(24, 8), "square": nn.Linear(8, 8)})}))
        self.last = nn.Linear(8, 2)


def set_grads(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def make(seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    return Toy()


def test_adamw_is_torchs_adamw():
    ours, theirs = make(), make()
    optimizer = Optimizer(ours, AdamW(lr=0.01, betas=(0.8, 0.9), weight_decay=0.3))
    named = dict(theirs.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if not name.endswith("bias")], "weight_decay": 0.3},
        {"params": [p for name, p in named.items() if name.endswith("bias")], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), foreach=False)
    for step in range(5):
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step()
        reference.step()
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, named[name], rtol=0, atol=1e-7)


def test_muon_is_torchs_muon_with_size_matching():
    ours, theirs = make(), make()
    optimizer = Optimizer(ours, AdamW(lr=0.01), Muon(lr=0.02, weight_decay=0.3))
    named = {name: p for name, p in theirs.named_parameters() if is_hidden(name, p)}
    assert sorted(named) == sorted(name for name, s in optimizer.state.items() if "momentum" in s)
    assert len(named) == 4
    reference = torch.optim.Muon(
        named.values(), lr=0.02, weight_decay=0.3, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    before = weights(theirs)
    for step in range(5):
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step()
        reference.step()
    moved = dict(ours.named_parameters())
    for name, p in named.items():
        scale = (p - before[name]).abs().max()
        assert (moved[name] - p).abs().max() < 0.05 * scale, name  # bf16 iterations in another order


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24)])
def test_orthogonalised_matrices_keep_their_directions(shape: tuple[int, int, int]):
    g = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    inside = u.mT @ orthogonalise(g, 5, torch.float64) @ vh.mT
    singular = torch.diagonal(inside, dim1=-2, dim2=-1)
    torch.testing.assert_close(inside, torch.diag_embed(singular), rtol=0, atol=1e-9)
    big = s > 0.05 * s.norm(dim=-1, keepdim=True)
    assert singular[big].min() > 0.6
    assert singular.max() < 1.3
    close = orthogonalise(g, 5, torch.float32).double() - orthogonalise(g, 5, torch.float64)
    assert close.abs().max() < 1e-4


def test_a_zero_gradient_is_harmless_to_muon():
    model = make()
    optimizer = Optimizer(model, AdamW(lr=0.01), Muon(lr=0.02, weight_decay=0.0))
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if is_hidden(name, p))


def test_who_gets_muon_and_who_decays_in_the_released_layout():
    with torch.device("meta"):
        model = MMDiT(tiny())
    named = dict(model.named_parameters())
    hidden = {name for name, p in named.items() if is_hidden(name, p)}
    layers = ("attn.wq", "attn.wk", "attn.wv", "attn.gate", "attn.wo", "mlp.gate", "mlp.up", "mlp.down")
    assert hidden == {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers}
    still = {name for name in named if not decays(name)}
    assert still == {
        *(f"blocks.{i}.mod.lin" for i in range(2)),
        "last.modulation.lin",
        *(
            "first.bias",
            "tmlp.0.bias",
            "tmlp.2.bias",
            "tproj.1.bias",
            "txtmlp.1.bias",
            "txtmlp.3.bias",
            "last.linear.bias",
        ),
    }
    assert decays("blocks.0.prenorm.scale")


@pytest.mark.parametrize(
    ("name", "shape", "muon"),
    [
        ("transformer_blocks.3.attn.to_q.weight", (8, 8), True),
        ("transformer_blocks.3.attn.to_out.0.weight", (8, 8), True),
        ("transformer_blocks.3.ff.gate.weight", (16, 8), True),
        ("transformer_blocks.3.attn.norm_q.weight", (8,), False),
        ("transformer_blocks.3.scale_shift_table", (6, 8), False),
        ("blocks.3.mod.lin", (6, 8), False),
        ("_orig_mod.blocks.3.attn.wq.weight", (8, 8), True),
        ("student.blocks.3.attn.wq.weight", (8, 8), True),
        ("text_fusion.layerwise_blocks.0.attn.to_q.weight", (8, 8), False),
        ("txtfusion.projector.weight", (1, 12), False),
        ("blocks.0.attn.projector.weight", (1, 12), False),
        ("last.linear.weight", (8, 8), False),
        ("tproj.1.weight", (48, 8), False),
    ],
)
def test_muon_by_name(name: str, shape: tuple[int, ...], muon: bool):
    assert is_hidden(name, torch.empty(shape, device="meta")) is muon


def test_found_inf_leaves_every_bit_and_every_state():
    model = make()
    optimizer = Optimizer(model, AdamW(lr=0.01, weight_decay=0.1), Muon(lr=0.02))
    set_grads(model, 0)
    optimizer.step()
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    set_grads(model, 1)
    for p in model.parameters():
        assert p.grad is not None
        p.grad.view(-1)[0] = float("nan")
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    after = optimizer.state_dict()
    assert all(torch.equal(after[kind][name], t) for kind in state for name, t in state[kind].items())
    set_grads(model, 1)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_state_goes_on_in_another_object_and_rates_come_from_the_code():
    a, b = make(), make()
    first, second = (Optimizer(m, AdamW(lr=0.01), Muon(lr=0.02)) for m in (a, b))
    for step in range(2):
        set_grads(a, step)
        first.step()
    b.load_state_dict(a.state_dict())
    rates = [group["lr"] for group in first.param_groups]
    for group in first.param_groups:
        group["lr"] = 123.0
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [group["lr"] for group in second.param_groups] == rates
    for group, rate in zip(first.param_groups, rates, strict=True):
        group["lr"] = rate
    for model, optimizer in ((a, first), (b, second)):
        set_grads(model, 9)
        optimizer.step()
    assert all(torch.equal(p, dict(b.named_parameters())[name]) for name, p in a.named_parameters())


def test_state_of_another_run_is_refused():
    plain, with_muon = Optimizer(make(), AdamW(lr=0.01)), Optimizer(make(), AdamW(lr=0.01), Muon(lr=0.02))
    with pytest.raises(ValueError, match="of another run"):
        plain.load_state_dict(with_muon.state_dict())


def test_dropped_and_frozen_parameters_have_no_state():
    model = make()
    model.last.weight.requires_grad_(False)
    optimizer = Optimizer(model, AdamW(lr=0.01))
    optimizer.drop("first.")
    names = set(optimizer.state)
    assert not any(name.startswith("first.") for name in names)
    assert "last.weight" not in names
    assert {name for group in optimizer.param_groups for name in group["names"]} == names
    with pytest.raises(ValueError, match="no parameter"):
        Optimizer(model.requires_grad_(False), AdamW(lr=0.01))


def test_rates_by_name():
    optimizer = Optimizer(make(), AdamW(lr=0.1), rate=lambda name: 5.0 if name.startswith("first.") else 1.0)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates["first.weight"] == rates["first.bias"] == 0.5
    assert rates["last.weight"] == rates["last.bias"] == 0.1


def test_parameters_without_a_gradient_stay():
    model = make()
    optimizer = Optimizer(model, AdamW(lr=0.01, weight_decay=0.5), Muon(lr=0.02))
    before = weights(model)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    optimizer.step()
    assert [name for name, p in model.named_parameters() if not torch.equal(p, before[name])] == ["first.weight"]
    optimizer.zero_grad()
    assert model.first.weight.grad is None


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_schedule(shape: str):
    def rate(step: int) -> float:
        return warmup_stable_decay(step, steps=100, warmup=10, decay=20, floor=0.1, shape=shape)  # type: ignore[arg-type]

    assert rate(0) == pytest.approx(0.1)
    assert rate(9) == rate(50) == rate(80) == 1.0
    assert rate(100) == pytest.approx(0.1)
    assert rate(90) == pytest.approx(0.1 + 0.9 * (0.5 if shape == "linear" else 1 - math.sqrt(0.5)))
    assert all(rate(i) >= rate(i + 1) for i in range(9, 100))
    assert warmup_stable_decay(5, steps=10) == 1.0
    with pytest.raises(ValueError, match="do not fit into 10"):
        warmup_stable_decay(0, steps=10, warmup=6, decay=5)


def test_plain_norms_do_not_decay_toward_zero():
    assert not decays("blocks.0.prenorm.gain")
    assert decays("blocks.0.prenorm.scale")
