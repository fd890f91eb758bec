import pytest
import torch
from krea_model.interfaces import Conditioning
from krea_model.unpad import pad, unpad

STATES = torch.arange(2 * 4 * 3 * 5, dtype=torch.float32).reshape(2, 4, 3, 5)
MASKS = {
    "start": [[False, False, True, True], [False, True, True, True]],
    "middle": [[True, False, True, True], [True, False, False, True]],
    "end": [[True, False, False, False], [True, True, True, True]],
}


@pytest.mark.parametrize("place", MASKS)
@pytest.mark.parametrize("garbage", [1e4, torch.inf, torch.nan])
def test_valid_tokens_come_in_order_and_padding_not_at_all(place: str, garbage: float) -> None:
    mask = torch.tensor(MASKS[place])
    cond = unpad(STATES.masked_fill(~mask[..., None, None], garbage), mask)
    rows = [STATES[b, i] for b in range(2) for i in range(4) if MASKS[place][b][i]]
    assert torch.equal(cond.states, torch.stack(rows))
    assert cond.lengths == tuple(sum(row) for row in MASKS[place])


def test_no_mask_keeps_every_token() -> None:
    cond = unpad(STATES)
    assert cond.lengths == (4, 4)
    assert torch.equal(cond.states, STATES.flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_the_masks_of_tokenisers_are_integers(dtype: torch.dtype) -> None:
    mask = torch.tensor(MASKS["middle"])
    assert torch.equal(unpad(STATES, mask.to(dtype)).states, unpad(STATES, mask).states)


def test_a_mask_of_other_values_is_refused() -> None:
    additive = torch.zeros(2, 4).masked_fill(~torch.tensor(MASKS["end"]), -torch.inf)
    with pytest.raises(ValueError, match=r"float32.*boolean"):
        unpad(STATES, additive)
    with pytest.raises(ValueError, match=r"values such as.*2"):
        unpad(STATES, torch.tensor([[0, 1, 2, 1], [1, 1, 1, 1]]))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3, 5\).*prompts, tokens, taps, width"):
        unpad(STATES[0], torch.ones(4, dtype=torch.bool))
    for shape in ((2, 3), (4, 2), (2,), (2, 4, 1)):
        with pytest.raises(ValueError, match=r"one value per token, \(2, 4\)"):
            unpad(STATES, torch.ones(shape, dtype=torch.bool))


def test_padding_lies_behind_and_is_zero() -> None:
    cond = Conditioning(STATES.flatten(0, 1)[:5], (1, 4))
    states, mask = pad(cond)
    assert mask.tolist() == MASKS["end"]
    assert torch.equal(states[mask], cond.states)
    assert not states[~mask].any()
    longer, wide = pad(cond, 9)
    assert longer.shape == (2, 9, 3, 5)
    assert torch.equal(longer[:, :4], states)
    assert wide.sum() == mask.sum()
    assert not longer[:, 4:].any()


@pytest.mark.parametrize("lengths", [(3,), (5, 1, 5), (2, 7), (4, 4)])
def test_pad_and_unpad_are_inverse(lengths: tuple[int, ...]) -> None:
    cond = Conditioning(torch.randn(sum(lengths), 3, 5), lengths)
    back = unpad(*pad(cond))
    assert back.lengths == lengths
    assert torch.equal(back.states, cond.states)


def test_a_length_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="7 tokens does not fit into 6"):
        pad(Conditioning(torch.randn(9, 3, 5), (2, 7)), 6)


def test_gradients_go_to_the_valid_tokens_only() -> None:
    mask = torch.tensor(MASKS["middle"])
    states = STATES.clone().requires_grad_()
    (unpad(states, mask).states * 2).sum().backward()
    assert states.grad is not None
    assert torch.equal(states.grad, 2.0 * mask[..., None, None].expand_as(states))
