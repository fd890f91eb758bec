"""Advantages against values computed by hand."""

import pytest
import torch
from krea_rl.advantage import advantages, gdpo, informative
from torch import Tensor

ONE = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
TWO = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 10.0, 10.0, 14.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("ddof", "eps", "outer", "inner"),
    [(0, 1e-4, 1.341521, 0.447174), (1, 1e-4, 1.161805, 0.387268), (1, 1e-8, 1.161895, 0.387298)],
)
def test_group_scale(ddof: int, eps: float, outer: float, inner: float) -> None:
    found = advantages(ONE, ddof=ddof, eps=eps)
    expected = torch.tensor([[-outer, -inner, inner, outer]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_global_scale() -> None:
    found = advantages(TWO, scale="global")
    expected = torch.tensor(
        [[-0.333842, -0.111281, 0.111281, 0.333842], [-0.222561, -0.222561, -0.222561, 0.667683]], dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    spread = 0.5 / advantages(TWO, scale="global", ddof=1)[0, 2].item()
    assert spread == pytest.approx(4.803273 + 1e-4, abs=1e-5)


def test_without_scale_only_the_mean_goes() -> None:
    assert advantages(ONE, scale="none").tolist() == [[-1.5, -0.5, 0.5, 1.5]]


FIRST = {
    "a": torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64),
    "b": torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64),
}
EQUAL = {"a": 1.0, "b": 1.0}


def size(rewards: dict[str, Tensor], **how: float) -> Tensor:
    return gdpo(rewards, EQUAL, **how)[:, 1]  # type: ignore[arg-type]


def test_gdpo_tells_apart_what_the_sum_does_not() -> None:
    total = FIRST["a"] + FIRST["b"]
    grpo = advantages(total, ddof=1)[:, 1]
    torch.testing.assert_close(grpo, torch.full((3,), 0.7071, dtype=torch.float64), atol=1e-4, rtol=0)
    before = size(FIRST, ddof=1, batch=False)
    torch.testing.assert_close(before, torch.tensor([0.7070, 1.4140, 0.7070]).double(), atol=1e-4, rtol=0)
    trl = size(FIRST, ddof=1)
    torch.testing.assert_close(trl, torch.tensor([0.645438, 1.290877, 0.645438]).double(), atol=1e-5, rtol=0)
    population = size(FIRST, ddof=0, eps=1e-9)
    torch.testing.assert_close(population, torch.tensor([0.707107, 1.414214, 0.707107]).double(), atol=1e-5, rtol=0)


def test_gdpo_weights_break_a_tie() -> None:
    rewards = {"a": torch.tensor([[1.0, 0.0]]).double(), "b": torch.tensor([[0.0, 1.0]]).double()}
    assert gdpo(rewards, EQUAL).abs().max().item() == 0
    found = gdpo(rewards, {"a": 2.0, "b": 1.0}, ddof=1, batch=False)
    torch.testing.assert_close(found, torch.tensor([[0.707007, -0.707007]]).double(), atol=1e-6, rtol=0)


def draws(scale: float, seed: int, shape: tuple[int, int] = (16, 8)) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gdpo_does_not_see_the_scale_of_a_reward() -> None:
    small = gdpo({"a": draws(1, 0), "b": draws(1, 1)}, EQUAL)
    large = gdpo({"a": draws(1, 0), "b": draws(100, 1)}, EQUAL)
    assert (small - large).abs().max().item() <= 1e-3
    summed = advantages(draws(1, 0) + draws(1, 1)), advantages(draws(1, 0) + draws(100, 1))
    assert (summed[0] - summed[1]).abs().max().item() > 0.5


def test_a_dead_reward_does_not_disturb_a_live_one() -> None:
    live = {"a": draws(0.2, 0)}
    found = gdpo({**live, "b": 0.7 + draws(1e-5, 1)}, EQUAL)
    alone = gdpo(live, {"a": 1.0})
    assert torch.corrcoef(torch.stack([found.flatten(), alone.flatten()]))[0, 1].item() >= 0.99


def test_only_dead_rewards_teach_nothing() -> None:
    found = gdpo({"a": 0.3 + draws(1e-5, 0), "b": 0.7 + draws(1e-5, 1)}, EQUAL)
    assert found.abs().max().item() <= 1e-2


def test_informative_looks_at_parts_and_not_at_their_sum() -> None:
    a = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    b = torch.tensor([[1.0, 0.0], [0.2, 0.2]])
    assert informative({"a": a, "b": b}).tolist() == [True, False]


def test_what_cannot_be_normalised_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        advantages(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="reward 'a' contains"):
        gdpo({"a": torch.tensor([[1.0, float("inf")]])}, {"a": 1.0})
    with pytest.raises(ValueError, match="expected"):
        advantages(torch.tensor([[1.0]]), ddof=1)
    with pytest.raises(ValueError, match="same names"):
        gdpo({"a": ONE}, {"b": 1.0})
    with pytest.raises(ValueError, match="must be positive"):
        advantages(ONE, eps=0.0)
