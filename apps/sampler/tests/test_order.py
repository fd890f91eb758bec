"""Orders: what is refused, and that parameters bring the same order back."""

from dataclasses import asdict
from pathlib import Path

import pytest
from krea_sampler.order import FORMAT, Order, weighted


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompts": ()}, "no prompt"),
        ({"prompts": ("a fox", "  ")}, "empty prompt"),
        ({"prompts": ("a fox",), "seeds": ()}, "no seeds"),
        ({"prompts": ("a fox",), "seeds": (-1,)}, "between 0 and"),
        ({"prompts": ("a fox",), "steps": 0}, "0 steps"),
        ({"prompts": ("a fox",), "guidance": -1.0}, "guidance -1.0"),
        ({"prompts": ("a fox",), "guidance": float("nan")}, "guidance nan"),
        ({"prompts": ("a fox",), "side_px": 0}, "side of 0 px"),
    ],
)
def test_wrong_orders_are_refused_in_one_sentence(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        Order(**wrong)
    assert "\n" not in str(caught.value)


def test_pictures_run_through_the_seeds_first() -> None:
    order = Order(prompts=("a", "b"), seeds=(3, 4))
    assert order.pictures == [("a", 3), ("a", 4), ("b", 3), ("b", 4)]


def test_parameters_bring_the_order_back() -> None:
    order = Order(prompts=("a", "b"), seeds=(3, 4), steps=7, guidance=2.5, side_px=32, grid=True)
    assert Order.of(asdict(order) | {"format": FORMAT, "model": {}}) == order


@pytest.mark.parametrize(
    "damage", [{"format": 99}, {"prompts": None}, {"seeds": ["x"]}, {"prompts": []}, {"steps": "many"}]
)
def test_damaged_parameters_are_refused(damage: dict) -> None:
    whole = asdict(Order(prompts=("a",), steps=4, guidance=1.0, side_px=32)) | {"format": FORMAT}
    with pytest.raises(ValueError, match=r"."):
        Order.of(whole | damage)
    with pytest.raises(ValueError, match="guidance"):
        Order.of({name: value for name, value in whole.items() if name != "guidance"})


def test_changes_leave_the_rest_alone() -> None:
    order = Order(prompts=("a",), seeds=(5, 6), steps=7)
    assert order.with_changes(seed=None, n=None, steps=None) == order
    assert order.with_changes(seed=None, n=3).seeds == (5, 6, 7)
    assert order.with_changes(seed=1, n=None, guidance=2.0) == Order(prompts=("a",), seeds=(1,), steps=7, guidance=2.0)


def test_a_colon_before_anything_but_a_number_belongs_to_the_path(tmp_path: Path) -> None:
    for name in ("plain.safetensors", "with:colon"):
        (tmp_path / name).touch()
        assert weighted(str(tmp_path / name)).strength == 1.0
        half = weighted(f"{tmp_path / name}:0.5")
        assert (half.path, half.strength) == (tmp_path / name, 0.5)
    with pytest.raises(ValueError, match="no file at"):
        weighted(f"{tmp_path / 'missing'}:0.5")
