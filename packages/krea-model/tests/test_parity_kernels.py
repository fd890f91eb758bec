"""Attention kernels and the compiler change neither results nor, by a square of the length, memory (checks 33, 34)."""

import math
from dataclasses import replace

import pytest
import torch
from krea_model.configs import Config, tiny
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.testing import tiny_model
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

KERNELS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
LENGTHS = [[9, 4], [7, 12], [1, 30], [16, 16], [5, 41], [23, 2]]
GRIDS = [[(3, 5), (2, 2)], [(4, 4), (1, 7)], [(5, 3), (6, 2)]] * 2


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 5e-6), (torch.bfloat16, 0.03)], ids=["fp32", "bf16"])
def test_attention_kernels_agree(dtype, bar, inputs, within):
    model = tiny_model(0, tiny()).to(dtype)
    x, t, cond, grids = inputs(tiny(), [9, 60, 9], [(3, 5), (8, 8), (3, 5)])
    args = (x.to(dtype), t.bfloat16().float(), Conditioning(cond.states.to(dtype), cond.lengths), grids)
    with torch.no_grad():
        want = model(*args).float()
        for kernel in KERNELS:
            with sdpa_kernel(kernel):
                got = model(*args).float()
            within(f"33, {str(dtype).removeprefix('torch.')}", (got - want).abs().max(), bar)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [*KERNELS, SDPBackend.CUDNN_ATTENTION])
def test_attention_kernels_of_a_gpu_agree_with_the_cpu(kernel, inputs, within):
    model = tiny_model(0, tiny()).to(torch.bfloat16)
    x, t, cond, grids = inputs(tiny(), [9, 9], [(3, 5)] * 2)
    args = (x.bfloat16(), t.bfloat16().float(), Conditioning(cond.states.bfloat16(), cond.lengths), grids)
    with torch.no_grad():
        want = model(*args).float()
        there = (args[0].cuda(), args[1].cuda(), Conditioning(args[2].states.cuda(), cond.lengths), grids)
        with sdpa_kernel(kernel):
            got = model.cuda()(*there).float().cpu()
    within("33, GPU", (got - want).abs().max(), 0.03)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for result in out if isinstance(out, tuple | list) else (out,):
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
        return out


def largest_tensor(model, args) -> int:
    with Largest() as seen:
        model(*args).square().sum().backward()
    return seen.elements


@pytest.mark.parametrize("images", [[(20, 20), (24, 24)], [(24, 24), (24, 24)]], ids=["ragged", "equal"])
def test_no_tensor_grows_with_the_square_of_the_length(images, inputs, within):
    """With grouped heads, forward and backward; the control shows that such a tensor would be seen."""
    model = tiny_model(0, tiny())
    args = inputs(tiny(), [100, 100] if images[0] == images[1] else [30, 100], images)
    scores = tiny().heads * (100 + math.prod(images[1])) ** 2
    seen = largest_tensor(model, args)
    within("33, largest tensor / all scores of one image", seen / scores, 0.5)
    with sdpa_kernel(SDPBackend.MATH):
        assert largest_tensor(model, args) >= scores


def test_new_lengths_do_not_compile_anew(inputs, within):
    eager, counter = tiny_model(0, tiny()), CompileCounterWithBackend("aot_eager")
    model, counts = compiled(counter), []
    for texts, grids in zip(LENGTHS, GRIDS, strict=True):
        args = inputs(tiny(), texts, grids)
        with torch.no_grad():
            within("34, aot_eager", (model(*args) - eager(*args)).abs().max(), 1e-5)
        counts.append(counter.frame_count)
    assert counts[0] > 0
    within("34, graphs made after the third of six combinations", counts[-1] - counts[2], 0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the compiler itself asks for
def test_training_with_compiled_blocks_does_not_compile_anew_either(inputs, within):
    config = replace(tiny(), layers=1)
    eager, counter = tiny_model(0, config), CompileCounterWithBackend("aot_eager")
    model, counts = compiled(counter, config), []
    for texts, grids in zip(LENGTHS, GRIDS, strict=True):
        args = inputs(config, texts, grids)
        for m in (eager, model):
            m.zero_grad()
            m(*args).square().sum().backward()
        for (name, ours), want in zip(model.named_parameters(), eager.parameters(), strict=True):
            assert ours.grad is not None, name
            assert want.grad is not None, name
            within("34, gradients", (ours.grad - want.grad).abs().max() / want.grad.abs().max(), 1e-5)
        counts.append(counter.frame_count)
    assert counts[0] > 0
    within("34, graphs made after the third of six combinations, training", counts[-1] - counts[2], 0)


@pytest.mark.slow
def test_inductor_agrees_with_eager(inputs, within):
    eager, model = tiny_model(0, tiny()), compiled("inductor")
    for texts, grids in zip(LENGTHS, GRIDS, strict=True):
        args = inputs(tiny(), texts, grids)
        with torch.no_grad():
            within("34, inductor", (model(*args) - eager(*args)).abs().max(), 1e-5)


def compiled(backend, config: Config | None = None) -> MMDiT:
    """The model with every block compiled by itself, as a trainer does it."""
    model = tiny_model(0, config or tiny())
    for block in model.blocks:
        block.compile(dynamic=True, backend=backend)
    return model
