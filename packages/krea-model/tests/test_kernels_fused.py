"""Every kernel against its reference, under Triton's interpreter: `TRITON_INTERPRET=1 pytest test_kernels_fused.py`.

`test_kernels.py` starts this in a process of its own.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from krea_model.kernels import reference
from krea_model.spans import Spans
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_kernels.py runs these with TRITON_INTERPRET=1", allow_module_level=True)

from krea_model.kernels import fused

BATCHES = ([5, 1, 13, 2, 30], [7], [4, 4, 4], [1], [3, 0, 40, 0])
SIZES = ((64, 4, 16, 96), (70, 3, 20, 130))  # features, heads, head size, hidden width; the second are no powers of two
Given = dict[str, tuple[list[Tensor], tuple[Any, ...]]]
EACH = pytest.mark.parametrize("name", fused.__all__)


def given(
    lengths: Sequence[int] = BATCHES[0], sizes: tuple[int, ...] = SIZES[0], dtype: torch.dtype = torch.float32
) -> Given:
    """For every operation, the tensors it has gradients for, and the rest."""
    features, heads, size, hidden = sizes
    tokens, spans, generator = sum(lengths), Spans.of(lengths), torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    turn = torch.randn(tokens, size // 2, generator=generator)
    scale, shift, gate = normal(len(lengths), 3 * features).chunk(3, -1)  # rows with gaps, as a block has them
    x = normal(tokens, features)
    return {
        "rms_norm_modulate": ([x, normal(features).float(), scale, shift], (spans,)),
        "norm_rotate": (
            [normal(tokens, heads, size), normal(size).float()],
            (torch.stack([turn.cos(), turn.sin()], -1),),
        ),
        "gate_output": ([x, normal(tokens, features)], ()),
        "swiglu": ([normal(tokens, hidden), normal(tokens, hidden)], ()),
        "gated_residual": ([x, normal(tokens, features), gate], (spans,)),
    }


def outcome(function: Callable[..., Tensor], tensors: Sequence[Tensor], rest: Sequence[Any]) -> list[Tensor]:
    """The result, and the gradients of a sum with a different factor for every element."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves, *rest)
    factors = torch.arange(out.numel()).reshape(out.shape).cos().bfloat16()
    return [out.detach(), *torch.autograd.grad((out.float() * factors).sum(), leaves)]


def confirm(got: Sequence[Tensor], wanted: Sequence[Tensor], relative: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert (a.float() - b.float()).abs().max() <= relative * b.abs().max()


def test_there_is_a_kernel_for_every_reference():
    assert sorted(given()) == sorted(fused.__all__) == sorted({*reference.__all__} - {"EPS", "rms_norm"})


@EACH
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("lengths", BATCHES, ids=str)
def test_fp32_result_and_gradients(name, lengths, sizes):
    tensors, rest = given(lengths, sizes)[name]
    got = outcome(getattr(fused, name), tensors, rest)
    confirm(got, outcome(getattr(reference, name), tensors, rest), 5e-6)


@EACH
def test_bf16_differs_by_rounding(name):
    tensors, rest = given(dtype=torch.bfloat16)[name]
    got = outcome(getattr(fused, name), tensors, rest)
    assert [t.dtype for t in got] == [torch.bfloat16, *(t.dtype for t in tensors)]
    exact = outcome(getattr(reference, name), [t.float() for t in tensors], rest)
    for a, b in zip(got, exact, strict=True):
        assert ((a.float() - b).abs() <= 2**-7 * b.abs() + 2e-6 * b.abs().max()).all()  # cut here, rounded on a GPU


@EACH
def test_inputs_with_gaps(name):
    tensors, rest = given()[name]
    gaps = [torch.stack([t, t + 1], -1)[..., 0] for t in tensors]
    rest = tuple(torch.stack([t, t], 2)[:, :, 0] if isinstance(t, Tensor) else t for t in rest)
    assert not any(t.is_contiguous() for t in gaps)
    confirm(outcome(getattr(fused, name), gaps, rest), outcome(getattr(reference, name), tensors, rest), 5e-6)
    wide = [torch.cat([t, t], -1)[..., : t.shape[-1]] for t in tensors]  # rows apart, dense inside
    confirm(outcome(getattr(fused, name), wide, rest), outcome(getattr(reference, name), tensors, rest), 5e-6)


@EACH
def test_a_gradient_with_gaps(name):
    tensors, rest = given()[name]
    grads = []
    for module in (fused, reference):
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = getattr(module, name)(*leaves, *rest).sum(0)  # its gradient is one row, repeated without a copy
        grads.append(torch.autograd.grad(out.square().sum(), leaves))
    confirm(grads[0], grads[1], 1e-5)


@EACH
def test_a_fp32_residual_beside_bf16_branches(name):
    tensors, rest = given()[name]
    mixed = [tensors[0], *(t.bfloat16() for t in tensors[1:])]
    got, wanted = (outcome(getattr(module, name), mixed, rest) for module in (fused, reference))
    assert [t.dtype for t in got] == [t.dtype for t in wanted]
    confirm(got, wanted, 2**-7)


@EACH
def test_only_what_needs_a_gradient_gets_one(name):
    tensors, rest = given()[name]
    wanted = outcome(getattr(reference, name), tensors, rest)[1:]
    for i, want in enumerate(wanted):
        leaves = [t.detach().requires_grad_(j == i) for j, t in enumerate(tensors)]
        factors = torch.arange(tensors[0].numel()).reshape(tensors[0].shape).cos().bfloat16()
        (getattr(fused, name)(*leaves, *rest) * factors).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [j == i for j in range(len(leaves))]
        grad = leaves[i].grad
        assert grad is not None
        confirm([grad], [want], 5e-6)


@EACH
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own check asks for it
def test_the_operator_is_sound(name):
    """Schema, derivative and shape rule, as torch checks them, with sizes known and unknown."""
    tensors, rest = given()[name]
    leaves = [t.detach().requires_grad_() for t in tensors]
    flat = [part for t in rest for part in ((t.owner, t.ends) if isinstance(t, Spans) else (t,))]
    if name in ("gate_output", "swiglu"):
        flat.append(name == "swiglu")
    operators = {"rms_norm_modulate": fused._norm, "norm_rotate": fused._heads, "gated_residual": fused._residual}
    torch.library.opcheck(operators.get(name, fused._activate), (*leaves, *flat))


def block(x: Tensor, weight: Tensor, mod: Tensor, rope: Tensor, spans: Spans) -> Tensor:
    scale, shift, gate = mod.chunk(3, -1)
    y = fused.rms_norm_modulate(x, weight, scale, shift, spans)
    y = fused.norm_rotate(y.unflatten(-1, (4, 16)), weight[:16], rope).flatten(-2)
    return fused.gated_residual(x, fused.swiglu(fused.gate_output(y, x), y), gate, spans)


def test_a_compiled_block_is_one_graph_for_all_lengths():
    made = 0

    def count(graph, _):
        nonlocal made
        made += 1
        return graph

    compiled = torch.compile(block, backend=count, fullgraph=True, dynamic=True)
    for lengths in ([3, 4, 5], [4, 4, 4], [9, 1], [30, 5, 5, 1]):
        generator = torch.Generator().manual_seed(0)
        shapes = ((sum(lengths), 64), (64,), (len(lengths), 192))
        x, weight, mod = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
        rope, spans = torch.randn(sum(lengths), 8, 2, generator=generator), Spans.of(lengths)
        got, wanted = (
            (out, *torch.autograd.grad(out.square().sum(), (x, weight, mod)))
            for out in (run(x, weight, mod, rope, spans) for run in (compiled, block))
        )
        confirm([t.detach() for t in got], [t.detach() for t in wanted], 1e-5)
    assert made == 1


@pytest.mark.parametrize(
    ("name", "spoil"), [(name, i) for name, (tensors, _) in given().items() for i in range(len(tensors))]
)
def test_shapes_that_do_not_fit_are_refused(name, spoil):
    """A kernel would read beyond the end of the smaller tensor."""
    tensors, rest = given()[name]
    tensors[spoil] = tensors[spoil][..., :-2]
    with pytest.raises(ValueError, match="does not fit the others"):
        getattr(fused, name)(*tensors, *rest)


def test_spans_of_other_tokens_are_refused():
    (x, weight, scale, shift), (spans,) = given()["rms_norm_modulate"]
    with pytest.raises(ValueError, match="does not fit the others"):
        fused.rms_norm_modulate(x[1:], weight, scale, shift, spans)
    with pytest.raises(ValueError, match="does not fit the others"):
        fused.gated_residual(x, x, scale[:-1], spans)
