import pytest
from krea_data.demo.emoji import codepoints, concepts, drawings, slug
from krea_data.demo.packages import SETS


@pytest.mark.parametrize("name", ["0023-FE0F-20E3", "23-20e3", "0023_fe0f_20e3", "0023 FE0F 20E3", "23_20e3"])
def test_code_points_have_one_form(name):
    assert codepoints(name) == "23-20e3"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("woman\u2019s boot", "womans-boot"),
        ("pi\u00f1ata", "pinata"),
        ("keycap: 5", "keycap-5"),
        ("Turks & Caicos", "turks-and-caicos"),
    ],
)
def test_slugs_are_spelled_as_in_icon_names(label, expected):
    assert slug(label) == expected


def test_concepts_come_in_order_without_letters_and_parts(folders):
    found = concepts(folders["labels"], ["de"])
    assert [one.label for one in found.values()] == ["thumbs up", "red heart", "keycap: #", "red apple"]
    apple = found["1f34e"]
    assert (apple.group, apple.subgroup, apple.tags) == ("food-drink", "food-fruit", ("apple", "fruit", "red"))
    assert apple.labels == {"de": "roter Apfel"}
    assert found["2764"].labels == {}


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("fluent-3d", {"1f34e", "23-20e3", "2764", "1f44d"}),
        ("fluent-flat", {"1f34e", "2764", "1f44d"}),
        ("noto", {"1f34e", "23-20e3", "2764", "1f44d"}),
        ("twemoji", {"1f34e", "23-20e3", "2764", "1f44d"}),
    ],
)
def test_sets_join_by_code_point_or_slug_without_skin_tones(folders, name, ids):
    found = list(drawings(SETS[name], folders[name], concepts(folders["labels"])))
    assert {one.id for one in found} == {f"{name}/{hexcode}" for hexcode in ids}
    assert all((one.svg is None) != (one.path is None) for one in found)


def test_rows_say_where_they_come_from(folders):
    found = {
        one.meta["concept"]: one.meta for one in drawings(SETS["noto"], folders["noto"], concepts(folders["labels"]))
    }
    meta = found["red apple"]
    assert meta["style"] == "Noto style"
    assert meta["licence"] == "Apache-2.0"
    assert meta["package"] == "@iconify-json/noto"
    assert meta["version"] == "1.2.9"
    assert meta["author"]
    assert meta["hexcode"] == "1f34e"
