"""Gradients in fp32 against diffusers (checks 14 and 15), and recomputation of blocks (check 16)."""

from functools import partial

import pytest
import torch
from krea_model.configs import tiny
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers
from krea_model.testing import tiny_model
from krea_model.unpad import unpad
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BAR = 5e-6  # of each tensor's largest gradient


def test_gradients_of_random_configurations(drawn, inputs, twin, one_by_one, within):
    """A few draws are so badly conditioned that diffusers' own fp32 gradients are as far from those in float64, and
    move as much when its text is permuted: two of the twenty may pass the bar, none may pass four times the bar."""
    draws = []
    for seed in range(20):
        config, lengths, grids = drawn(seed)
        model = tiny_model(seed, config)
        other = twin(model)
        ours, theirs = inputs(config, lengths, grids), inputs(config, lengths, grids)
        for args, run in ((ours, model), (theirs, partial(one_by_one, other, pad=2))):
            args[0].requires_grad_()
            args[2].states.requires_grad_()
            run(*args).square().sum().backward()
        draws.append((worst(model, other), relative(ours[0], theirs[0]), relative(ours[2].states, theirs[2].states)))
    for name, figures in zip(("14", "15, image", "15, text"), zip(*draws, strict=True), strict=True):
        within(f"{name}, 18 of 20 draws", sorted(figures)[-3], BAR)
        within(f"{name}, worst draw", max(figures), 4 * BAR)


@pytest.mark.parametrize("lengths", [(9, 5, 1), (9, 0, 4)], ids=str)
def test_gradients_of_a_padded_batch(lengths, twin, together, within):
    """With a prompt that has no tokens, too: it is no part of the text stage, whose gradients stay as they are."""
    model = tiny_model(0, tiny())
    other = twin(model)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3 * 15, tiny().token_features, generator=generator)
    states = torch.randn(3, 9, 3, 32, generator=generator)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    t = torch.rand(3, generator=generator)
    ours, theirs = ([x.clone().requires_grad_(), states.clone().requires_grad_()] for _ in range(2))
    model(ours[0], t, unpad(ours[1], mask), [(3, 5)] * 3).square().sum().backward()
    together(other, theirs[0], t, theirs[1], mask, (3, 5)).square().sum().backward()
    within("14, padded batch", worst(model, other), BAR)
    for a, b in zip(ours, theirs, strict=True):
        within("15, padded batch", relative(a, b), BAR)
    assert gradient(ours[1])[mask].any()
    within("15, at padded tokens", gradient(ours[1])[~mask].abs().max(), 0)


def test_recomputed_blocks_give_the_same_bits(inputs, within):  # check 16
    runs = []
    for recomputed in (False, True):
        model = tiny_model(0, tiny())
        calls = 0

        def counted(forward, *args):
            nonlocal calls
            calls += 1
            return forward(*args)

        for block in model.blocks:
            body = partial(counted, block.forward)
            block.forward = partial(checkpoint, body, use_reentrant=False) if recomputed else body
        x, t, cond, grids = inputs(tiny(), [9, 4, 9], [(3, 5), (2, 2), (1, 7)])
        x.requires_grad_()
        cond.states.requires_grad_()
        model(x, t, cond, grids).square().sum().backward()
        assert calls == len(model.blocks) * (2 if recomputed else 1)
        runs.append([gradient(x), gradient(cond.states), *map(gradient, model.parameters())])
    within("16", max((a - b).abs().max() for a, b in zip(*runs, strict=True)), 0)


def test_the_cached_text_stage_passes_gradients_on(inputs):
    model = tiny_model(0, tiny())
    runs = []
    for cached in (False, True):
        x, t, cond, grids = inputs(tiny(), [5, 8], [(3, 5), (2, 2)])
        states = cond.states.requires_grad_()
        cond = Conditioning(states, cond.lengths)
        model(x, t, cond, grids, model.text(cond) if cached else None).square().sum().backward()
        runs.append(gradient(states))
    assert torch.equal(*runs)


def worst(model: MMDiT, other: torch.nn.Module) -> float:
    """The largest difference of a parameter's gradients relative to that gradient's largest element.

    Some gradients are zero but for rounding (with one tap there is nothing to attend to), so a ten millionth of the
    largest gradient of all is taken off each difference first.
    """
    wanted = {name: gradient(p) for name, p in other.named_parameters()}
    floor = 1e-7 * max(float(want.abs().max()) for want in wanted.values())
    figures = []
    for name, p in model.named_parameters():
        want = wanted[to_diffusers(name)].reshape(p.shape)
        over = float((gradient(p) - want).abs().max()) - floor
        figures.append(max(0.0, over) / max(float(want.abs().max()), 1e-30))
    return max(figures)


def relative(ours: Tensor, theirs: Tensor) -> float:
    want = gradient(theirs)
    return float((gradient(ours) - want).abs().max() / want.abs().max())


def gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad
