"""Against the code that the model was released with (check 4), where a copy of its `mmdit.py` is at hand.

Set KREA2_ORIGINAL to its path (file `mmdit.py` of github.com/krea-ai/krea-2); without it diffusers stands in, in
`test_parity.py`, with the same five shapes.
"""

import contextlib
import importlib.util
import os
import sys

import pytest
import torch
from krea_model.configs import tiny
from krea_model.testing import tiny_model
from krea_model.unpad import unpad

pytestmark = pytest.mark.skipif("KREA2_ORIGINAL" not in os.environ, reason="KREA2_ORIGINAL names no file")


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch):
    """The released module, uncompiled, on whatever attention kernel there is: it insists on cuDNN's."""
    spec = importlib.util.spec_from_file_location("krea2_original", os.environ["KREA2_ORIGINAL"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda function: function)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "sdpa_kernel", contextlib.nullcontext)
    return module


@pytest.mark.parametrize(
    ("count", "text", "grid"), [(2, 9, (3, 5)), (3, 13, (2, 9)), (1, 7, (4, 4)), (2, 241, (16, 1)), (2, 6, (1, 1))]
)
def test_velocity_and_names_equal_the_released_code(count, text, grid, original, within):
    config, model = tiny(), tiny_model(0, tiny())
    sizes = {name: getattr(config, name) for name in original.SingleMMDiTConfig.__dataclass_fields__ if name != "bias"}
    other = original.SingleStreamDiT(original.SingleMMDiTConfig(**sizes)).eval()
    other.load_state_dict(model.state_dict(), strict=True)

    generator = torch.Generator().manual_seed(77)
    (rows, columns), tokens = grid, grid[0] * grid[1]
    x = torch.randn(count, tokens, config.token_features, generator=generator)
    states = torch.randn(count, text, config.txtlayers, config.txtdim, generator=generator)
    t = torch.rand(count, generator=generator)
    mask = torch.ones(count, text, dtype=torch.bool)
    for b in range(count):
        mask[b, 1 : 3 + b] = False
    ids = torch.zeros(count, text + tokens, 3)
    ids[:, text:, 1] = torch.arange(rows).repeat_interleave(columns)
    ids[:, text:, 2] = torch.arange(columns).repeat(rows)
    whole = torch.cat([mask, mask.new_ones(count, tokens)], 1)
    with torch.no_grad():
        want = other(img=x, context=states, t=t, pos=ids, mask=whole).flatten(0, 1)
        got = model(x.flatten(0, 1), t, unpad(states, mask), [grid] * count)
    within("4, original", (got - want).abs().max(), 5e-6)
