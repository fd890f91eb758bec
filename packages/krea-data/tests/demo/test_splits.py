import random

import pytest
from krea_data.demo.splits import STYLES, core, drawable, withheld_concept, withheld_pair
from krea_data.rows import Row

NAMES = [f"concept {number}" for number in range(12_000)]


def rows(names, subgroup="food-fruit", styles=STYLES, since=1.0):
    for order, name in enumerate(names):
        meta = {"concept": name, "subgroup": subgroup, "order": order, "since": since}
        for style in styles:
            yield Row(id=f"{style}/{name}", blob="", meta=meta | {"style": style})


def test_one_concept_in_forty_is_withheld():
    assert sum(map(withheld_concept, NAMES)) == pytest.approx(len(NAMES) / 40, rel=0.15)


def test_one_concept_in_twelve_misses_exactly_one_style():
    counts = [sum(withheld_pair(name, style) for style in STYLES) for name in NAMES]
    assert set(counts) == {0, 1}
    assert sum(counts) == pytest.approx(len(NAMES) / 12, rel=0.1)
    for style in STYLES:
        assert sum(withheld_pair(name, style) for name in NAMES) == pytest.approx(len(NAMES) / 48, rel=0.2)


def test_other_styles_are_never_withheld():
    assert not any(withheld_pair(name, "clip art style") for name in NAMES)


def test_the_split_is_what_it_was():
    """Moving it would move tests into the training data of models that exist."""
    assert [name for name in NAMES[:120] if withheld_concept(name)] == WITHHELD
    assert [(name, style) for name in NAMES[:60] for style in STYLES if withheld_pair(name, style)] == PAIRS


def test_the_core_covers_every_kind_before_it_repeats_one():
    found = list(rows(["a", "b", "c"], "food-fruit")) + list(rows(["x", "y"], "animal-bird"))
    assert core(found, 2) == ("a", "x")
    assert core(found, 9) == ("a", "x", "b", "y", "c")


def test_familiar_and_older_concepts_lead():
    found = list(rows(["durian"], since=15)) + list(rows(["mango"], since=0.6)) + list(rows(["banana"], since=16))
    assert core(found, 3) == ("banana", "mango", "durian")


def test_the_core_needs_all_four_styles():
    assert core([*rows(["a"]), *rows(["b"], styles=STYLES[:3])], 5) == ("a",)


def test_the_core_does_not_depend_on_the_order_of_rows():
    found = list(rows([f"thing {n}" for n in range(30)])) + list(rows(["x", "y"], "animal-bird"))
    expected = core(found, 20)
    random.Random(0).shuffle(found)
    assert core(found, 20) == expected


@pytest.mark.parametrize(
    ("concept", "subgroup", "expected"),
    [
        ("red apple", "food-fruit", True),
        ("flag: Peru", "country-flag", False),
        ("keycap: 1", "keycap", False),
        ("one o\u2019clock", "time", False),
        ("Aries", "zodiac", False),
        ("woman farmer", "person-role", False),
        ("up arrow", "arrow", False),
        ("waxing crescent moon", "sky-weather", False),
        ("calendar", "office", False),
        ("alarm clock", "time", True),
    ],
)
def test_what_is_drawable(concept, subgroup, expected):
    assert drawable(Row(id="a/1", blob="", meta={"concept": concept, "subgroup": subgroup})) is expected


def test_the_core_is_not_empty():
    with pytest.raises(ValueError, match="at least 1"):
        core([], 0)


WITHHELD = ["concept 24", "concept 69", "concept 104"]
PAIRS = [("concept 24", "Twemoji style"), ("concept 46", "3D style"), ("concept 48", "Noto style")]
