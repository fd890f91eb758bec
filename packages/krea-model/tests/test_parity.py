"""The velocity in fp32 against diffusers: random configurations, every way of padding (checks 1 and 4 to 13)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_model.configs import tiny
from krea_model.interfaces import Conditioning
from krea_model.testing import tiny_model
from krea_model.unpad import unpad
from torch import Tensor

BAR = 5e-6
SEEDS = range(24)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_configurations_each_sample_alone(seed, drawn, inputs, twin, one_by_one, within):
    config, lengths, grids = drawn(seed)
    model = tiny_model(seed, config)
    args = inputs(config, lengths, grids, seed)
    with torch.no_grad():
        want = one_by_one(twin(model), *args, pad=3 if seed % 2 else 0)
        got = model(*args)
    assert want.std() > 0.1
    within("random, alone", (got - want).abs().max(), BAR)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_configurations_in_padded_batches(seed, drawn, twin, together, within):
    config, lengths, grids = drawn(seed)
    model = tiny_model(seed, config)
    x, t, states, mask = padded(config, lengths, grids[0], seed, at=("start", "middle", "end")[seed % 3])
    with torch.no_grad():
        want = together(twin(model), x, t, states, mask, grids[0])
        got = model(x, t, unpad(states, mask), [grids[0]] * len(lengths))
    within("random, padded batch", (got - want).abs().max(), BAR)


@pytest.mark.parametrize("lengths", [(9, 0, 4), (0, 9), (0, 0), (0,)], ids=str)
def test_prompts_without_any_token_leave_the_image_to_itself(lengths, twin, together, within):
    model = tiny_model(0, tiny())
    x, t, states, mask = padded(tiny(), lengths, (3, 5), 0)
    with torch.no_grad():
        want = together(twin(model), x, t, states, mask, (3, 5))
        got = model(x, t, unpad(states, mask), [(3, 5)] * len(lengths))
    within("empty prompts", (got - want).abs().max(), BAR)


def test_padding_in_the_middle(twin, together, within):  # check 1
    model = tiny_model(0, tiny())
    x, t, states, mask = padded(tiny(), [7, 6], (3, 5), 0, at="middle", width=9)
    with torch.no_grad():
        want = together(twin(model), x, t, states, mask, (3, 5))
        got = model(x, t, unpad(states, mask), [(3, 5)] * 2)
    assert mask[:, [0, -1]].all()
    assert not mask.all(1).any()
    within("1", (got - want).abs().max(), BAR)


@pytest.mark.parametrize(  # checks 4 and 12: the five shapes at which diffusers was compared with the original code
    ("count", "text", "grid"),
    [
        (2, 9, (3, 5)),
        (3, 13, (2, 9)),
        (1, 7, (4, 4)),
        (2, 241, (16, 1)),
        (2, 6, (1, 1)),
        (1, 1, (1, 1)),
        (2, 1, (5, 3)),
    ],
)
def test_odd_counts_and_long_grids(count, text, grid, twin, together, within):
    model = tiny_model(0, tiny())
    kept = [max(1, text - 2 - b) for b in range(count)]
    x, t, states, mask = padded(tiny(), kept, grid, 77, at="middle", width=text)
    with torch.no_grad():
        want = together(twin(model), x, t, states, mask, grid)
        got = model(x, t, unpad(states, mask), [grid] * count)
    within("4 and 12", (got - want).abs().max(), BAR)


def test_no_mask_is_a_mask_of_ones(twin, together, within):  # check 5
    model = tiny_model(0, tiny())
    x, t, states, mask = padded(tiny(), [9, 9], (3, 5), 0)
    other = twin(model)
    with torch.no_grad():
        ours = [model(x, t, unpad(states, m), [(3, 5)] * 2) for m in (None, mask)]
        theirs = [together(other, x, t, states, m, (3, 5)) for m in (None, mask)]
    assert mask.all()
    within("5", (ours[0] - ours[1]).abs().max(), 0)
    for want in theirs:
        within("5, to diffusers", (ours[0] - want).abs().max(), BAR)


@pytest.mark.parametrize("at", ["start", "middle", "end"])
@pytest.mark.parametrize("garbage", [1e4, torch.inf, torch.nan])
def test_what_lies_in_padding_changes_nothing(garbage, at, twin, together, within):  # check 6
    model = tiny_model(0, tiny())
    x, t, states, mask = padded(tiny(), [4, 7, 1], (3, 5), 0, at=at)
    spoilt = states.masked_fill(~mask[..., None, None], garbage)
    with torch.no_grad():
        clean, got = (model(x, t, unpad(s, mask), [(3, 5)] * 3) for s in (states, spoilt))
        theirs = together(twin(model), x, t, spoilt, mask, (3, 5))
    within("6", (got - clean).abs().max(), 0)
    if garbage == 1e4:  # the others come through in diffusers: zero times NaN is NaN
        within("6, to diffusers", (got - theirs).abs().max(), BAR)
    else:
        assert theirs.isnan().any()


def test_a_padded_batch_is_its_samples_compacted_and_alone(twin, together, one_by_one, within):  # check 7
    model = tiny_model(0, tiny())
    x, t, states, mask = padded(tiny(), [4, 9, 1], (3, 5), 0, at="middle")
    other, cond, grids = twin(model), unpad(states, mask), [(3, 5)] * 3
    with torch.no_grad():
        alone = one_by_one(other, x, t, cond, grids)
        within("7", (model(x, t, cond, grids) - alone).abs().max(), BAR)
        within("7, diffusers", (together(other, x, t, states, mask, (3, 5)) - alone).abs().max(), BAR)


def test_text_padded_from_9_to_256(twin, together, within):  # check 8
    model = tiny_model(0, tiny())
    x, t, states, mask = padded(tiny(), [9, 6], (3, 5), 0, width=256)
    with torch.no_grad():
        want = together(twin(model), x, t, states, mask, (3, 5))
        got = model(x, t, unpad(states, mask), [(3, 5)] * 2)
        short = model(x, t, unpad(states[:, :9], mask[:, :9]), [(3, 5)] * 2)
    within("8", (got - want).abs().max(), BAR)
    assert torch.equal(got, short)


def test_permuted_text(twin, together, within):  # check 9
    model = tiny_model(0, tiny())
    x, t, states, mask = padded(tiny(), [9, 6], (3, 5), 0)
    order = torch.tensor([3, 0, 8, 1, 2, 6, 4, 7, 5])
    with torch.no_grad():
        want = together(twin(model), x, t, states, mask, (3, 5))
        got = model(x, t, unpad(states[:, order], mask[:, order]), [(3, 5)] * 2)
    assert not torch.equal(states[:, order][mask[:, order]], states[mask])
    within("9", (got - want).abs().max(), BAR)


def test_one_time_per_sample(inputs, twin, one_by_one, within):  # check 10
    model = tiny_model(0, tiny())
    x, _, cond, grids = inputs(tiny(), [5, 5, 5], [(3, 5)] * 3)
    t = torch.tensor([0.0, 0.37, 1.0])
    with torch.no_grad():
        want = one_by_one(twin(model), x, t, cond, grids)
        within("10", (model(x, t, cond, grids) - want).abs().max(), BAR)
        assert (model(x, t.flip(0), cond, grids) - want).abs().max() > 0.1


def test_a_turned_grid_differs_by_its_positions(inputs, twin, one_by_one, within):  # check 11
    model = tiny_model(0, tiny())
    other = twin(model)
    x, t, cond, _ = inputs(tiny(), [9], [(3, 5)])
    with torch.no_grad():
        ours = [model(x, t, cond, [grid]) for grid in ((3, 5), (5, 3), (1, 15), (15, 1))]
        for got, grid in zip(ours, ((3, 5), (5, 3), (1, 15), (15, 1)), strict=True):
            within("11", (got - one_by_one(other, x, t, cond, [grid])).abs().max(), BAR)
    assert (ours[0] - ours[1]).abs().max() > 1e-2
    assert (ours[2] - ours[3]).abs().max() > 1e-2


def test_integer_and_floating_positions(inputs, twin, within):  # check 13: ours come from the integers of the grid
    model = tiny_model(0, tiny())
    other = twin(model)
    x, t, cond, grids = inputs(tiny(), [9], [(3, 5)])
    ids = torch.tensor([(0, 0, 0)] * 9 + [(0, row, column) for row in range(3) for column in range(5)])
    with torch.no_grad():
        got = model(x, t, cond, grids)
        whole, floating = (other(x[None], cond.states[None], t, p, return_dict=False)[0][0] for p in (ids, ids.float()))
    within("13", (whole - floating).abs().max(), 0)
    within("13, to diffusers", (got - whole).abs().max(), BAR)


SAMPLES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(samples=SAMPLES, seed=st.integers(0, 99))
def test_ragged_batches_equal_one_by_one_in_any_order(samples, seed):
    model = tiny_model(0, tiny())
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randn(n, 3, 32, generator=generator) for n, _, _ in samples]
    images = [torch.randn(h * w, tiny().token_features, generator=generator) for _, h, w in samples]
    times = torch.rand(len(samples), generator=generator)

    def run(order: list[int]) -> list[Tensor]:
        cond = Conditioning(torch.cat([texts[i] for i in order]), tuple(len(texts[i]) for i in order))
        grids = [samples[i][1:] for i in order]
        return list(model(torch.cat([images[i] for i in order]), times[order], cond, grids).split([*map(prod, grids)]))

    with torch.no_grad():
        batch = run([*range(len(samples))])
        order = torch.randperm(len(samples), generator=generator).tolist()
        for i, moved in zip(order, run(order), strict=True):
            assert (moved - batch[i]).abs().max() <= BAR
        for i, got in enumerate(batch):
            assert (got - run([i])[0]).abs().max() <= BAR


def prod(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]


def padded(config, lengths, grid, seed: int, *, at: str = "end", width: int | None = None):
    """Image tokens, times, padded states `b l k f` full of numbers, and the mask: padding at the start, in the middle
    or at the end of each prompt."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(1, *lengths)
    x = torch.randn(len(lengths) * prod(grid), config.token_features, generator=generator)
    states = torch.randn(len(lengths), width, config.txtlayers, config.txtdim, generator=generator)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in zip(mask, lengths, strict=True):
        head = {"start": 0, "middle": (length + 1) // 2, "end": length}[at]
        row[:head] = True
        row[width - (length - head) :] = True
    return x, torch.rand(len(lengths), generator=generator), states, mask
