import logging
import os
import subprocess
import sys

import pytest
import torch
from krea_model import kernels
from krea_model.kernels import choice, reference
from krea_model.mmdit import Attention, RMSNorm, SwiGLU, modulate, rope_table, rotate
from krea_model.testing import fill
from torch import Tensor

LENGTHS = [3, 1, 5]
SAMPLE = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))


def drawn(features: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, scale, shift."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(9, features), (features,), (3, features), (3, features)]
    x, weight, scale, shift = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x, weight, scale, shift


def test_the_references_are_what_the_model_computes():
    norm, attention, mlp = RMSNorm(64), Attention(64, 4, 2), SwiGLU(64, 128)
    for module in (norm, attention, mlp):
        fill(module)
    x, _, scale, shift = drawn(64)
    with torch.no_grad():
        got = reference.rms_norm_modulate(x, norm.scale, scale, shift, SAMPLE)
        assert torch.equal(got, modulate(norm(x), scale, shift, LENGTHS))
        rope = rope_table([3], [(2, 3)], (4, 6, 6), 1000.0, torch.device("cpu"))
        heads = x.unflatten(-1, (4, 16))
        assert torch.equal(reference.rotate(heads, rope), rotate(heads, rope))
        assert torch.equal(mlp.down(reference.swiglu(mlp.gate(x), mlp.up(x))), mlp(x))
        one = x[:1]  # over a single token the attention returns its value
        value = attention.wv(one).unflatten(-1, (2, 16)).repeat_interleave(2, 1).flatten(-2)
        want = attention(one, [1])
        assert torch.allclose(attention.wo(reference.gate_output(value, attention.gate(one))), want, atol=1e-6)


def test_the_choice_is_logged_once(caplog):
    choice.implementation.cache_clear()
    args = (*drawn(64), SAMPLE)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert torch.equal(kernels.rms_norm_modulate(*args), reference.rms_norm_modulate(*args))
            kernels.swiglu(args[0], args[0])
    said = [record.message for record in caplog.records]
    assert said == [
        "rms_norm_modulate on cpu: krea_model.kernels.reference, because there is no kernel for cpu",
        "swiglu on cpu: krea_model.kernels.reference, because there is no kernel for cpu",
    ]


def test_without_triton_the_reference_is_chosen_and_the_reason_given(caplog, monkeypatch):
    choice.implementation.cache_clear()
    monkeypatch.setitem(sys.modules, "krea_model.kernels.triton_norm", None)
    monkeypatch.delattr(kernels, "triton_norm", raising=False)
    with caplog.at_level(logging.INFO):
        assert choice.implementation("rms_norm_modulate", "cuda") is reference.rms_norm_modulate
    choice.implementation.cache_clear()
    assert "triton cannot be imported" in caplog.text


def test_the_triton_norm_equals_the_reference_under_the_interpreter():
    pytest.importorskip("triton")
    # In a process of its own: Triton decides at its first import whether it interprets.
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["float32", "gradients", "bfloat16"]


def interpreted() -> None:
    from krea_model.kernels import triton_norm

    for features in (64, 96):
        ours, theirs = drawn(features), drawn(features)
        outputs = []
        for args, run in ((ours, triton_norm.rms_norm_modulate), (theirs, reference.rms_norm_modulate)):
            for arg in args:
                arg.requires_grad_()
            outputs.append(run(*args, SAMPLE))
            (outputs[-1] * torch.arange(features).cos()).sum().backward()
        assert (outputs[0] - outputs[1]).abs().max() <= 5e-6
        for a, b in zip(ours, theirs, strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert (a.grad - b.grad).abs().max() <= 2e-6 * b.grad.abs().max()
    print("float32 gradients")  # noqa: T201
    x, weight, scale, shift = drawn(64, torch.bfloat16)
    exact = reference.rms_norm_modulate(x.float(), weight.float(), scale.float(), shift.float(), SAMPLE)
    got = triton_norm.rms_norm_modulate(x, weight, scale, shift, SAMPLE)
    assert got.dtype == torch.bfloat16
    assert ((got.float() - exact).abs() <= 2**-7 * exact.abs() + 1e-6).all()  # the interpreter cuts, a GPU rounds
    print("bfloat16")  # noqa: T201


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_triton_norm_on_a_gpu_equals_the_reference(dtype):
    x, weight, scale, shift = (arg.cuda() for arg in drawn(6144, dtype))
    sample = SAMPLE.cuda()
    exact = reference.rms_norm_modulate(x.float(), weight.float(), scale.float(), shift.float(), sample)
    got = kernels.rms_norm_modulate(x, weight, scale, shift, sample).float()
    tolerance = 2**-8 if dtype == torch.bfloat16 else 2**-20
    assert ((got - exact).abs() <= tolerance * exact.abs() + 1e-5).all()


if __name__ == "__main__":
    interpreted()
