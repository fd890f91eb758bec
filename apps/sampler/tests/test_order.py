"""Orders: what is refused, and that parameters bring the same order back."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from krea_sampler.order import FORMAT, Order, parsed_size, weighted


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
        ({"prompts": ("a fox",), "height_px": -8}, "side of -8 px"),
        ({"prompts": ("a fox",), "guidances": (1.0, -1.0)}, "guidance -1.0"),
        ({"prompts": ("a fox",), "guidance": 1.0, "guidances": (2.0, 3.0)}, "give one or several"),
        ({"prompts": ("a fox",), "side_px": 8, "width_px": 8}, "a side, and a width"),
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
    wide = Order(prompts=("a",), steps=7, guidances=(1.0, 2.5), width_px=32, height_px=16, negative="grey")
    assert Order.of(json.loads(json.dumps(asdict(wide))) | {"format": FORMAT}) == wide


def test_parameters_of_the_first_format_are_still_read() -> None:
    first = {"format": 1, "prompts": ["a"], "seeds": [3], "steps": 7, "guidance": 2.5, "side_px": 32, "grid": False}
    assert Order.of(first) == Order(prompts=("a",), seeds=(3,), steps=7, guidance=2.5, side_px=32)


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 99},
        {"format": True},
        {"guidances": 3},
        {"prompts": None},
        {"seeds": ["x"]},
        {"prompts": []},
        {"steps": "many"},
    ],
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


def test_a_width_alone_keeps_the_height_and_one_guidance_replaces_several() -> None:
    square = Order(prompts=("a",), side_px=64, guidances=(1.0, 2.0))
    wide = square.with_changes(width_px=96)
    assert (wide.side_px, wide.width_px, wide.height_px) == (None, 96, 64)
    assert wide.with_changes(side_px=32) == Order(prompts=("a",), side_px=32, guidances=(1.0, 2.0))
    assert wide.sized(48, 48).side_px == 48
    assert square.with_changes(guidance=3.0) == Order(prompts=("a",), side_px=64, guidance=3.0)
    assert square.with_changes(guidance=3.0).with_changes(guidances=(1.0, 2.0)) == square


def test_every_picture_has_an_order_of_its_own() -> None:
    order = Order(prompts=("a", "b"), seeds=(3, 4), guidances=(0.0, 2.0), grid=True, negative="grey")
    assert [(*one.prompts, one.guidance, *one.seeds) for one in order.singles] == [
        *(("a", 0.0, 3), ("a", 0.0, 4), ("a", 2.0, 3), ("a", 2.0, 4)),
        *(("b", 0.0, 3), ("b", 0.0, 4), ("b", 2.0, 3), ("b", 2.0, 4)),
    ]
    assert order.singles[0] == Order(prompts=("a",), seeds=(3,), guidance=0.0, negative="grey")


def test_sizes_are_width_by_height() -> None:
    assert [parsed_size(text) for text in ("832x1248", " 64X32 ", "64", "640\u00d7480")] == [
        *((832, 1248), (64, 32), (64, 64), (640, 480))
    ]
    for wrong in ("big", "12x", "x12", "1x2x3", "-4", "1e3"):
        with pytest.raises(ValueError, match="write width x height"):
            parsed_size(wrong)


def test_a_colon_before_anything_but_a_number_belongs_to_the_path(tmp_path: Path) -> None:
    for name in ("plain.safetensors", "with:colon"):
        (tmp_path / name).touch()
        assert weighted(str(tmp_path / name)).strength == 1.0
        half = weighted(f"{tmp_path / name}:0.5")
        assert (half.path, half.strength) == (tmp_path / name, 0.5)
    assert weighted(str(tmp_path / "with:colon")).path.name == "with:colon"
    with pytest.raises(ValueError, match=r"strength nan of .*; use a number"):
        weighted(f"{tmp_path / 'plain.safetensors'}:nan")
    with pytest.raises(ValueError, match="no file at"):
        weighted(f"{tmp_path / 'missing'}:0.5")
