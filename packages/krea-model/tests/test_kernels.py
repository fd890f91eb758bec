import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_krea2 import Krea2RMSNorm, Krea2SwiGLU
from krea_model import kernels
from krea_model.kernels import choice, reference
from krea_model.spans import Spans
from torch import Tensor

HERE = Path(__file__)
RAGGED, EQUAL = [3, 1, 5], [3, 3, 3]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def angles(tokens: int, size: int) -> Tensor:
    """`s d/2 2`, as `mmdit` makes them."""
    turn = 3 * drawn(tokens, size // 2, seed=9)
    return torch.stack([turn.cos(), turn.sin()], -1)


def one_by_one(x: Tensor, scale: Tensor, lengths: list[int]) -> list[tuple[Tensor, int]]:
    """The tokens of each sample, and its number."""
    assert scale.shape[0] == len(lengths)
    return [(part, i) for i, part in enumerate(x.split(lengths))]


@DTYPES
@pytest.mark.parametrize("lengths", [RAGGED, EQUAL])
def test_norm_and_modulation_are_those_of_diffusers(lengths, dtype):
    norm = Krea2RMSNorm(64)
    norm.weight.data = drawn(64)
    x, scale, shift = drawn(9, 64, seed=1, dtype=dtype), *drawn(2, 3, 64, seed=2, dtype=dtype)
    want = [(1.0 + scale[i]) * norm(part) + shift[i] for part, i in one_by_one(x, scale, lengths)]
    got = reference.rms_norm_modulate(x, norm.weight, scale, shift, Spans.of(lengths))
    assert got.dtype == dtype
    torch.testing.assert_close(got, torch.cat(want), **exact(dtype))


@DTYPES
def test_norm_and_rotation_are_those_of_diffusers(dtype):
    norm, rope = Krea2RMSNorm(16), angles(9, 16)
    norm.weight.data = drawn(16)
    x = drawn(9, 4, 16, seed=1, dtype=dtype)
    tables: Any = tuple(table.repeat_interleave(2, -1) for table in rope.unbind(-1))
    want = apply_rotary_emb(norm(x)[None], tables, sequence_dim=1)
    assert isinstance(want, Tensor)
    got = reference.norm_rotate(x, norm.weight, rope)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want[0], atol=5e-7, rtol=2**-23 if dtype == torch.float32 else 2**-8)


@DTYPES
def test_swiglu_is_that_of_diffusers(dtype):
    module = Krea2SwiGLU(16, 32).to(dtype)
    x = drawn(9, 16, dtype=dtype)
    assert torch.equal(module.down(reference.swiglu(module.gate(x), module.up(x))), module(x))


@DTYPES
@pytest.mark.parametrize("lengths", [RAGGED, EQUAL])
def test_gates_are_what_their_names_say(lengths, dtype):
    out, gate, per_sample = drawn(9, 64, dtype=dtype), drawn(9, 64, seed=1, dtype=dtype), drawn(3, 64, dtype=dtype)
    assert torch.equal(reference.gate_output(out, gate), out * gate.sigmoid())
    want = torch.cat([part + per_sample[i] * gate.split(lengths)[i] for part, i in one_by_one(out, gate[:3], lengths)])
    torch.testing.assert_close(reference.gated_residual(out, gate, per_sample, Spans.of(lengths)), want, **exact(dtype))


def exact(dtype: torch.dtype) -> dict[str, Any]:
    """bf16 rounds where diffusers does, fp32 up to the last bits."""
    return {"rtol": 2e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 0}


def test_equal_lengths_are_not_copied_token_by_token():
    """Broadcast over samples or gathered by token: the same numbers and the same gradients."""
    spans = Spans.of(EQUAL)
    gathered = Spans((), spans.owner, spans.ends)  # without lengths there is nothing to broadcast over
    assert spans.equal
    assert not gathered.equal
    made = []
    for given in (spans, gathered):
        leaves = [t.requires_grad_() for t in (drawn(9, 64), drawn(64, seed=1), *drawn(3, 3, 64, seed=2))]
        x, weight, scale, shift, gate = leaves
        out = reference.gated_residual(x, reference.rms_norm_modulate(x, weight, scale, shift, given), gate, given)
        made.append([out, *torch.autograd.grad((out * drawn(9, 64, seed=3)).sum(), leaves)])
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b)


def every(x: Tensor, weight: Tensor, mod: Tensor, rope: Tensor, spans: Spans) -> Tensor:
    """All five operations, one after another; x: `s 64`, weight: `64`, mod: `b 192`, rope: `s 8 2`."""
    scale, shift, gate = mod.chunk(3, -1)
    y = kernels.rms_norm_modulate(x, weight, scale, shift, spans)
    y = kernels.norm_rotate(y.unflatten(-1, (4, 16)), weight[:16], rope).flatten(-2)
    return kernels.gated_residual(x, kernels.swiglu(kernels.gate_output(y, x), y), gate, spans)


def test_the_choice_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(choice, "_kernels", {})
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            every(drawn(9, 64), drawn(64), drawn(3, 192), angles(9, 16), Spans.of(RAGGED))
    said = [record.message for record in caplog.records]
    assert said == ["fused operations on cpu: krea_model.kernels.reference, because there are no kernels for cpu"]
    assert choice.implementation("cpu") is reference


def test_without_triton_the_reference_runs_and_the_log_says_why(caplog, monkeypatch):
    monkeypatch.setattr(choice, "_kernels", {})
    monkeypatch.setitem(sys.modules, "triton", None)
    for module in ("fused", "triton_gates", "triton_heads", "triton_norm", "triton_segments", "launch"):
        monkeypatch.delitem(sys.modules, f"krea_model.kernels.{module}", raising=False)
        monkeypatch.delattr(kernels, module, raising=False)
    with caplog.at_level(logging.INFO):
        assert choice.implementation("cuda") is reference
    (why,) = caplog.messages
    assert why.startswith("fused operations on cuda: krea_model.kernels.reference, because Triton cannot be imported")
    assert why.endswith("install krea-model[cuda]")


def test_with_triton_the_kernels_run_on_a_gpu(caplog, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(choice, "_kernels", {})
    with caplog.at_level(logging.INFO):
        assert choice.implementation("cuda").__name__ == "krea_model.kernels.fused"
    assert caplog.messages == ["fused operations on cuda: krea_model.kernels.fused, because Triton is installed"]


def test_a_compiled_model_does_not_depend_on_lengths():
    made = 0

    def count(graph, _):
        nonlocal made
        made += 1
        return graph

    compiled = torch.compile(every, backend=count, fullgraph=True, dynamic=True)
    graphs = []
    for lengths in ([3, 4, 5], [4, 4, 4], [9, 1, 7], [2, 2], [30, 5, 5, 1]):
        s = sum(lengths)
        given = (drawn(s, 64), drawn(64), drawn(len(lengths), 192), angles(s, 16), Spans.of(lengths))
        torch.testing.assert_close(compiled(*given), every(*given))
        graphs.append(made)
    assert graphs[0] == graphs[-1]


def test_every_kernel_under_tritons_interpreter():
    pytest.importorskip("triton")
    # In a process of its own: Triton decides at its first import whether it interprets.
    line = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE.with_name("test_kernels_fused.py"))
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.gpu
class TestOnGPU:
    LENGTHS = (1152, 1040, 7, 2049)

    def pieces(self, dtype: torch.dtype) -> dict[str, tuple[Tensor | Spans, ...]]:
        """Arguments of every operation at a size of the released model."""
        s, b, f = sum(self.LENGTHS), len(self.LENGTHS), 6144
        spans = Spans.of(self.LENGTHS, "cuda")
        x, y, mod = (drawn(n, f, seed=i, dtype=dtype).cuda() for i, n in enumerate((s, s, b)))
        weight, heads = drawn(f).cuda(), drawn(s, 48, 128, dtype=dtype).cuda()
        return {
            "rms_norm_modulate": (x, weight, mod, mod + 1, spans),
            "norm_rotate": (heads, weight[:128], angles(s, 128).cuda()),
            "gate_output": (x, y),
            "swiglu": (x, y),
            "gated_residual": (x, y, mod, spans),
        }

    def outcome(self, function, given) -> list[Tensor]:
        leaves = [t.clone().requires_grad_(t.shape[-1] != 2) if isinstance(t, Tensor) else t for t in given]
        out = function(*leaves)
        grads = torch.autograd.grad(
            (out.float() * drawn(out.shape[-1], seed=7).cuda()).sum(),
            [t for t in leaves if isinstance(t, Tensor) and t.requires_grad],
        )
        return [out.detach(), *grads]

    @DTYPES
    @pytest.mark.parametrize("name", kernels.__all__)
    def test_kernels_equal_the_reference_and_repeat_bit_for_bit(self, name, dtype):
        given = self.pieces(dtype)[name]
        exact = [t.float() if isinstance(t, Tensor) else t for t in given]
        got, again = (self.outcome(getattr(kernels, name), given) for _ in range(2))
        wanted = self.outcome(getattr(reference, name), exact)
        for a, b, c in zip(got, again, wanted, strict=True):
            assert torch.equal(a, b)
            assert (a.float() - c).abs().max() <= (1e-5 if dtype == torch.float32 else 2**-7) * c.abs().max()

    def test_more_elements_than_fit_32_bits(self):
        if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
            pytest.skip("needs 40 GiB")
        a = torch.zeros(2**31 // 6144 + 2, 6144, dtype=torch.bfloat16, device="cuda")
        a[-1] = 2.0
        spans = Spans.of([a.shape[0]], "cuda")
        assert torch.equal(kernels.swiglu(a, a)[-1], F.silu(a[-1]) * a[-1])
        one = torch.ones(1, 6144, dtype=torch.bfloat16, device="cuda")
        assert torch.equal(kernels.gated_residual(a, a, one, spans)[-1], 2 * a[-1])
        normed = kernels.rms_norm_modulate(a, torch.zeros(6144, device="cuda"), 0 * one, one, spans)
        assert torch.equal(normed[-1], one[0] + 1)
