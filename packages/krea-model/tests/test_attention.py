import importlib.util
import inspect
import logging
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from krea_model import attention
from krea_model.attention import attend, chosen
from krea_model.spans import Spans
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LENGTHS = [[4, 4, 4], [1, 2, 2, 9], [9, 2, 5, 2, 1, 9, 2], [3]]


def masked(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """The same by one dense attention with a block mask, fp64."""
    owner = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])
    mask = owner[:, None] == owner[None, :]
    whole = [x.double().transpose(0, 1)[None] for x in (q, k, v)]
    return F.scaled_dot_product_attention(*whole, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_each_sequence_attends_to_itself_alone(lengths: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q = torch.randn(sum(lengths), 6, 16, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(sum(lengths), 2, 16, dtype=dtype, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = attend(q, k, v, Spans.of(lengths))
    assert out.dtype == dtype

    wanted = masked(q, k, v, lengths)
    atol = 1e-6 if dtype == torch.float64 else 0.03
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=atol)

    weights = torch.randn_like(wanted)
    ours = torch.autograd.grad((out * weights).sum(), (q, k, v))
    theirs = torch.autograd.grad((wanted * weights).sum(), (q, k, v))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=10 * atol)


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any operation returned in one tensor."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.numel())
        return out


@pytest.mark.parametrize("lengths", [[512, 512], [400, 300, 512]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_heads_never_hold_all_scores(lengths: list[int], dtype: torch.dtype) -> None:
    q, k = (torch.randn(sum(lengths), n, 16, dtype=dtype, requires_grad=True) for n in (4, 2))
    with Largest() as largest:
        attend(q, k, k, Spans.of(lengths)).sum().backward()
    assert q.numel() <= largest.numbers < 512 * 512


def flat(q, k, v, ends_q, ends_k, longest_q, longest_k) -> Tensor:
    """What a kernel for flat batches computes, one sequence at a time; as strict as they are."""
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert q.is_contiguous()
    assert ends_q.dtype == ends_k.dtype == torch.int32
    assert ends_q.tolist() == ends_k.tolist()
    lengths = ends_q.diff().tolist()
    assert longest_q == longest_k == max(lengths)
    return masked(q, k, v, lengths).to(q.dtype)


def fake_flash_attn(calls: list[str]) -> ModuleType:
    """The function of flash-attn 2 with its signature."""
    module = ModuleType("flash_attn")

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
    ):
        calls.append("flash")
        assert (dropout_p, softmax_scale, causal) == (0.0, None, False)
        return flat(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    module.__dict__["flash_attn_varlen_func"] = flash_attn_varlen_func
    return module


@pytest.mark.parametrize("backend", ["flash", "varlen"])
def test_kernels_for_flat_batches_get_what_they_ask_for(backend, monkeypatch) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn(calls))
    from torch.nn.attention import varlen

    real = inspect.signature(varlen.varlen_attn)

    def varlen_attn(*args, **options):
        calls.append("varlen")
        given = real.bind(*args, **options).arguments
        assert given.pop("enable_gqa")
        return flat(*given.values())

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    lengths = [5, 2, 7]
    q, k = (torch.randn(sum(lengths), n, 16, dtype=torch.bfloat16) for n in (4, 2))
    out = attend(q, k, k, Spans.of(lengths), backend)
    assert calls == [backend]
    torch.testing.assert_close(out, attend(q, k, k, Spans.of(lengths), "sdpa"), rtol=0, atol=0.03)
    attend(q[:6], k[:6], k[:6], Spans.of([3, 3]), backend)
    assert calls == [backend]  # sequences of one length go to the dense kernel


@pytest.mark.parametrize(
    ("installed", "capability", "dtype", "name"),
    [
        (True, (9, 0), torch.bfloat16, "flash"),
        (False, (9, 0), torch.bfloat16, "varlen"),
        (False, (7, 5), torch.float16, "sdpa"),
        (True, (9, 0), torch.float32, "sdpa"),
    ],
)
def test_the_choice_on_a_gpu(installed, capability, dtype, name, monkeypatch, caplog) -> None:
    monkeypatch.setattr(attention, "_choice", attention._choice.__wrapped__)  # nothing cached
    found = "spec" if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: found if module == "flash_attn" else 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with caplog.at_level(logging.INFO, attention.__name__):
        assert chosen("cuda", dtype) == name
    assert f"attention on cuda in {str(dtype)[6:]}: {name}, because" in caplog.text


def test_the_choice_is_said_once(caplog) -> None:
    attention._choice.cache_clear()
    q = torch.randn(6, 2, 16)
    with caplog.at_level(logging.INFO, attention.__name__):
        for _ in range(3):
            attend(q, q, q, Spans.of([4, 2]))
    assert caplog.text.count("attention on cpu in float32: sdpa, because the others have no kernel for cpu") == 1
