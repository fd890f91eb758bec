import math
from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from krea_model.configs import base, k2, small, tiny
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers, to_original
from krea_model.sizes import diffusers_config
from krea_model.testing import tiny_model
from torch import nn


def test_released_size_counts_12_820_073_036_parameters_in_430_tensors():
    with torch.device("meta"):
        model = MMDiT(k2())
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


@pytest.mark.parametrize(
    ("size", "least", "most"), [(k2, 12e9, 13e9), (base, 0.8e9, 1.2e9), (small, 5e6, 20e6), (tiny, 1e5, 5e5)]
)
def test_named_sizes_have_the_parameters_of_diffusers(size, least, most):
    stated = {key: value for key, value in diffusers_config(size()).items() if not key.startswith("_")}
    with torch.device("meta"):
        model, other = MMDiT(size()), Krea2Transformer2DModel(**stated)
    wanted = {name: p.numel() for name, p in other.named_parameters()}
    assert {to_diffusers(name): p.numel() for name, p in model.named_parameters()} == wanted
    assert least < sum(wanted.values()) < most


def test_a_cached_text_stage_changes_nothing(inputs):
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
def test_golden_statistics(case, mean, std, largest, first, within):
    with torch.no_grad():
        y = golden_model()(*golden_inputs(*case))
    within("2, mean", abs(y.mean() - mean), 1e-5)
    within("2, deviation", abs(y.std() - std), 1e-5)
    within("2, largest", abs(y.abs().max() - largest), 1e-5)
    within("2, first eight", (y.flatten()[:8] - torch.tensor(first)).abs().max(), 1e-5)
