import math
import random
from dataclasses import replace

import pytest
import torch
from krea_model.configs import Config, base, k2, tiny
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers, to_original
from krea_model.testing import tiny_model
from torch import Tensor, nn


def drawn(seed: int) -> tuple[Config, list[int], list[tuple[int, int]]]:
    """A random configuration, prompt lengths and grids."""
    rng = random.Random(seed)
    head, kvheads, txtkvheads = rng.choice([16, 20, 32]), rng.choice([1, 2, 3]), rng.choice([1, 2])
    heads, txtheads = kvheads * rng.choice([1, 2, 4]), txtkvheads * rng.choice([1, 2])
    config = Config(
        features=head * heads,
        layers=rng.choice([1, 2, 3]),
        heads=heads,
        kvheads=kvheads,
        txtdim=16 * txtheads,
        txtlayers=rng.choice([1, 2, 5, 12]),
        txtheads=txtheads,
        txtkvheads=txtkvheads,
        channels=rng.choice([1, 4, 16]),
        patch=rng.choice([1, 2]),
        multiplier=rng.choice([1, 4]),
        tdim=rng.choice([8, 32]),
        theta=rng.choice([1000.0, 10.0]),
    )
    count = rng.choice([1, 2, 4])
    lengths = [rng.choice([1, 2, 7, 13, 64]) for _ in range(count)]
    grids = [(rng.randint(1, 6), rng.randint(1, 6)) for _ in range(count)]
    if seed % 3 == 0:  # all alike: the path without gathering
        lengths, grids = [lengths[0]] * count, [grids[0]] * count
    return config, lengths, grids


def inputs(config: Config, lengths, grids, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(h * w for h, w in grids), config.token_features, generator=generator)
    states = torch.randn(sum(lengths), config.txtlayers, config.txtdim, generator=generator)
    t = torch.rand(len(grids), generator=generator)
    return x, t, Conditioning(states, tuple(lengths)), grids


@pytest.mark.parametrize("seed", range(12))
def test_output_equals_diffusers_one_by_one(seed, twin, one_by_one):
    config, lengths, grids = drawn(seed)
    model = tiny_model(seed, config)
    args = inputs(config, lengths, grids, seed)
    with torch.no_grad():
        want = one_by_one(twin(model), *args, pad=3 if seed % 2 else 0)
        got = model(*args)
    assert want.std() > 0.1
    assert (got - want).abs().max() <= 5e-6


@pytest.mark.parametrize("seed", [1, 3, 8])
def test_gradients_equal_those_of_diffusers(seed, twin, one_by_one):
    config, lengths, grids = drawn(seed)
    model = tiny_model(seed, config)
    other = twin(model)
    ours, theirs = inputs(config, lengths, grids), inputs(config, lengths, grids)
    for args, run in ((ours, model), (theirs, lambda *a: one_by_one(other, *a, pad=2))):
        args[0].requires_grad_()
        args[2].states.requires_grad_()
        run(*args).square().sum().backward()
    wanted = {name: gradient(p) for name, p in other.named_parameters()}
    floor = 1e-7 * max(float(want.abs().max()) for want in wanted.values())  # some are zero but for rounding
    for name, p in model.named_parameters():
        want = wanted[to_diffusers(name)].reshape(p.shape)
        assert (gradient(p) - want).abs().max() <= 1e-5 * want.abs().max() + floor, name
    for a, b in ((ours[0], theirs[0]), (ours[2].states, theirs[2].states)):
        assert (gradient(a) - gradient(b)).abs().max() <= 1e-5 * gradient(b).abs().max()


def gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


NORMS = ("scale", "norm.weight", "norm1.weight", "norm2.weight", "norm_q.weight", "norm_k.weight")


def test_in_bf16_the_difference_to_diffusers_is_rounding(twin, one_by_one):
    model = tiny_model(0, tiny())
    other = twin(model)
    x, t, cond, grids = inputs(tiny(), [9, 4], [(3, 5), (2, 2)])
    t = t.bfloat16().float()  # a time that bf16 cannot hold moves the clock of either model
    for m in (model, other):
        for name, p in m.named_parameters():
            if not name.endswith(
                ("scale", "norm1.weight", "norm2.weight", "norm_q.weight", "norm_k.weight", "norm.weight")
            ):
                p.data = p.data.bfloat16()
    args = (x.bfloat16(), t, Conditioning(cond.states.bfloat16(), cond.lengths), grids)
    with torch.no_grad():
        diff = (model(*args).float() - one_by_one(other, *args).float()).abs()
    assert diff.mean() <= 2e-3
    assert diff.max() <= 0.03


def test_released_size_counts_12_820_073_036_parameters_in_430_tensors():
    with torch.device("meta"):
        model, billion = MMDiT(k2()), MMDiT(base())
    assert sum(p.numel() for p in model.parameters()) == 12_820_073_036
    assert len(model.state_dict()) == 430
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 264
    counts = {}
    for name, p in model.named_parameters():
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + p.numel()
    assert counts == {
        "first": 399_360,
        "tmlp": 39_333_888,
        "tproj": 226_529_280,
        "txtfusion": 343_430_156,
        "txtmlp": 53_492_224,
        "blocks": 12_156_476_416,
        "last": 411_712,
    }
    assert 0.9e9 < sum(p.numel() for p in billion.parameters()) < 1.5e9


def test_a_sample_does_not_depend_on_its_batch():
    model = tiny_model(0, tiny())
    x, t, cond, grids = inputs(tiny(), [5, 1, 12, 5], [(3, 5), (1, 1), (5, 3), (3, 5)])
    texts, images = cond.states.split(list(cond.lengths)), x.split([h * w for h, w in grids])
    with torch.no_grad():
        together = model(x, t, cond, grids).split([h * w for h, w in grids])
        for i in range(4):
            alone = model(images[i], t[i : i + 1], Conditioning(texts[i], (len(texts[i]),)), [grids[i]])
            assert (alone - together[i]).abs().max() <= 5e-6


def test_text_is_a_set_and_rows_are_not_columns():
    model = tiny_model(0, tiny())
    x, t, cond, grids = inputs(tiny(), [9], [(3, 5)])
    with torch.no_grad():
        want = model(x, t, cond, grids)
        order = torch.tensor([3, 0, 8, 1, 2, 6, 4, 7, 5])
        shuffled = model(x, t, Conditioning(cond.states[order], cond.lengths), grids)
        turned = model(x, t, cond, [(5, 3)])
    assert (shuffled - want).abs().max() <= 5e-6
    assert (turned - want).abs().max() > 1e-2


def test_a_cached_text_stage_changes_nothing():
    model = tiny_model(0, tiny())
    x, t, cond, grids = inputs(tiny(), [5, 8], [(3, 5), (2, 2)])
    with torch.no_grad():
        assert torch.equal(model(x, t, cond, grids, model.text(cond)), model(x, t, cond, grids))


def reference_order() -> list[str]:
    """Names in the order of diffusers' state dict: the order in which the golden weights were drawn."""
    body = ["norm1.weight", "norm2.weight"]
    body += [f"attn.to_{part}.weight" for part in ("q", "k", "v", "gate")]
    body += ["attn.norm_q.weight", "attn.norm_k.weight", "attn.to_out.0.weight"]
    body += [f"ff.{part}.weight" for part in ("gate", "up", "down")]
    both = ("weight", "bias")
    layerwise = [f"text_fusion.layerwise_blocks.{i}.{part}" for i in range(2) for part in body]
    refiner = [f"text_fusion.refiner_blocks.{i}.{part}" for i in range(2) for part in body]
    return [
        *(f"img_in.{part}" for part in both),
        *(f"time_embed.linear_{i}.{part}" for i in (1, 2) for part in both),
        *(f"time_mod_proj.{part}" for part in both),
        *layerwise,
        "text_fusion.projector.weight",
        *refiner,
        "txt_in.norm.weight",
        *(f"txt_in.linear_{i}.{part}" for i in (1, 2) for part in both),
        *(f"transformer_blocks.{i}.{part}" for i in range(2) for part in ("scale_shift_table", *body)),
        "final_layer.scale_shift_table",
        "final_layer.norm.weight",
        *(f"final_layer.linear.{part}" for part in both),
    ]


def golden_model() -> MMDiT:
    model = MMDiT(replace(tiny(), channels=4, patch=2)).eval()
    parameters, generator = dict(model.named_parameters()), torch.Generator().manual_seed(1234)
    for name in reference_order():
        p = parameters.pop(to_original(name))
        draw = torch.randn(p.shape, generator=generator)
        if "norm" in name.split(".")[-2] or name.endswith("scale_shift_table"):
            p.data = 0.2 * draw
        else:
            p.data = 0.05 * draw if p.ndim == 1 else draw / math.sqrt(p.shape[1])
    assert not parameters
    return model


def golden_inputs(batch: int, text: int, grid: tuple[int, int], seed: int, padded: bool = True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, grid[0] * grid[1], 16, generator=generator)
    states = torch.randn(batch, text, 3, 32, generator=generator)
    t = torch.rand(batch, generator=generator).bfloat16().float()
    keep = torch.ones(batch, text, dtype=torch.bool)
    for b in range(batch if padded else 0):
        keep[b, 4 : 6 + b] = False
    return x.flatten(0, 1), t, Conditioning(states[keep], tuple(keep.sum(1).tolist())), [grid] * batch


# Statistics of diffusers 0.42.1 (torch 2.13.0, CPU, fp32) for these weights and inputs: mean, deviation, largest, first
# eight values.


@pytest.mark.parametrize(
    ("case", "mean", "std", "largest", "first"),
    [
        (
            (2, 9, (3, 5), 77),
            *(0.098436, 1.050904, 3.846237),
            [0.142176, -0.103928, -1.611244, 0.846802, -1.839321, 0.029016, 0.080173, 0.192349],
        ),
        (
            (2, 9, (3, 5), 77, False),
            *(0.095229, 1.048327, 3.836448),
            [0.119975, -0.138249, -1.621459, 0.934405, -1.832021, 0.030921, 0.031879, 0.198172],
        ),
        (
            (1, 7, (4, 4), 5),
            *(-0.292257, 1.381968, 3.983764),
            [-1.292354, -0.001809, 0.052683, 0.171475, 0.46504, -0.659419, 0.820667, 0.466089],
        ),
    ],
)
def test_golden_statistics(case, mean, std, largest, first):
    with torch.no_grad():
        y = golden_model()(*golden_inputs(*case))
    assert y.mean().item() == pytest.approx(mean, abs=1e-5)
    assert y.std().item() == pytest.approx(std, abs=1e-5)
    assert y.abs().max().item() == pytest.approx(largest, abs=1e-5)
    assert y.flatten()[:8].tolist() == pytest.approx(first, abs=1e-5)
