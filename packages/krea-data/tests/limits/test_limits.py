from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_data.limits.distribution import Distribution, distributions
from krea_data.limits.page import page
from krea_data.limits.stages import Limit, Stage, number, selected, stages
from krea_data.rows import Result, Row
from PIL import Image

RECIPE = {
    "small": {"flat.entropy": {"least": 0.5}},
    "large": {"flat.entropy": {"least": 2}, "decode.width": {"least": 512}},
}


def row(row_id: str, drop: str | None = None, **values: Mapping[str, Any]) -> Row:
    results = {task: Result(value=value, drop=drop) for task, value in values.items()}
    return Row(id=row_id, blob="0", results=results)


def test_each_stage_has_its_own_reasons() -> None:
    rows = [
        row("a", flat={"entropy": 3.0}, decode={"width": 600}),
        row("b", flat={"entropy": 1.0}, decode={"width": 600}),
        row("c", flat={"entropy": 0.1}),
        row("d", flat={"entropy": 3.0}),
        row("e", drop="blank", flat={"entropy": 3.0}),
    ]
    found = {one.id: why for one, why in selected(rows, stages(RECIPE))}
    assert found == {
        "a": {},
        "b": {"large": "flat.entropy is 1, below 2"},
        "c": {"small": "flat.entropy is 0.1, below 0.5", "large": "flat.entropy is 0.1, below 2"},
        "d": {"large": "decode.width was not measured"},
        "e": {"small": "flat dropped it: blank", "large": "flat dropped it: blank"},
    }
    assert Limit(field="flat.entropy", most=2).refusal(rows[0]) == "flat.entropy is 3, above 2"
    assert number(row("x", ocr={"found": True}), "ocr.found") == 1.0
    assert number(row("x", ocr={"text": "7"}), "ocr.text") is None


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"s": {"entropy": {"least": 1}}}, "'entropy' is no field"),
        ({"s": {"flat.entropy": {}}}, "neither `least` nor `most`"),
        ({"s": {"flat.entropy": {"least": 2, "most": 1}}}, "no flat.entropy is at least 2 and at most 1"),
        ({"s": {"flat.entropy": {"min": 2}}}, "use least and most"),
        ({"s": {"flat.entropy": {"least": "2"}}}, "use numbers"),
        ({"s": {"flat.entropy": 2}}, "use least and most"),
        ({"s": 3}, "give limits by field"),
    ],
)
def test_bad_recipes_are_named(recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stages(recipe)


@given(st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=40), st.floats(-6, 6), st.floats(-6, 6))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_what_is_said_to_be_left_out_is_left_out(values: list[float], one: float, other: float) -> None:
    rows = [row(f"r{n:02d}", flat={"x": value}) for n, value in enumerate(values)]
    (spread,) = distributions(rows, ["flat.x"])
    least, most = sorted([one, other])
    low, high = spread.around(Limit(field="flat.x", least=least, most=most), examples=3)
    assert low.left_out == sum(value < least for value in values) / len(values)
    assert high.left_out == sum(value > most for value in values) / len(values)
    by_id = {one.id: one for one in rows}
    for around, bound in ((low, Limit(field="flat.x", least=least)), (high, Limit(field="flat.x", most=most))):
        assert all(bound.refusal(by_id[one]) is None for one in around.inside)
        assert all(bound.refusal(by_id[one]) is not None for one in around.outside)
        away = [abs((number(by_id[one], "flat.x") or 0.0) - around.bound) for one in around.outside]
        assert away == sorted(away)
        assert len(around.outside) == min(3, round(around.left_out * len(values)))


def test_a_bound_leaves_out_the_share_that_was_asked_for() -> None:
    spread = Distribution("flat.x", np.arange(1000.0), tuple(f"r{n}" for n in range(1000)))
    assert spread.around(Limit(field="flat.x", least=spread.bound_for(0.1)))[0].left_out == pytest.approx(
        0.1, abs=0.002
    )
    most = spread.bound_for(0.2, largest=True)
    assert spread.around(Limit(field="flat.x", most=most))[0].left_out == pytest.approx(0.2, abs=0.002)
    with pytest.raises(ValueError, match=r"leaves out 1\.5"):
        spread.bound_for(1.5)


def test_bins_hold_all_rows() -> None:
    draw = np.random.default_rng(1)
    for values in (np.sort(draw.normal(size=500)), np.sort(np.exp(4 * draw.normal(size=500))), np.ones(5), np.zeros(0)):
        counts, edges = Distribution("a.b", values, ()).bins(20)
        assert counts.sum() == len(values)
        assert (np.diff(edges) > 0).all()
    assert Distribution("a.b", np.sort(np.exp(4 * draw.normal(size=500))), ()).bins(20)[1][1] < 0.1, "logarithmic"


def test_the_page_shows_both_sides_of_every_limit() -> None:
    rows = [row(f"r{n:03d}", flat={"entropy": n / 10}) for n in range(100)]
    spread = distributions([*rows, row("unmeasured")], ["flat.entropy"])
    asked: list[str] = []

    def picture(row_id: str) -> Image.Image:
        asked.append(row_id)
        return Image.new("RGB", (8, 8))

    text = page(spread, [Stage(name="<b>", limits=(Limit(field="flat.entropy", least=2, most=9),))], picture)
    assert sorted(asked) == [f"r{n:03d}" for n in [*range(12, 28), *range(83, 99)]]
    assert "at least 2 leaves out 20.0%" in text
    assert "at most 9 leaves out 9.0%" in text
    assert "100 measured, 1 not" in text
    assert "<b>" not in text
    assert text.count("<rect") == 60
