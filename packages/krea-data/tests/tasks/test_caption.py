import pytest
from krea_data.rows import Row
from krea_data.tasks.caption import Caption, captions, label_words, long, medium, short, with_article
from krea_data.tasks.colour import Palette
from PIL import Image, ImageDraw

APPLE = {
    "label": "red apple",
    "style": "flat style",
    "group": "food-drink",
    "subgroup": "food-fruit",
    "tags": ["apple", "diet", "food", "fruit", "red"],
}


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("flag: Peru", "flag of Peru"),
        ("keycap: 3", "keycap 3"),
        ("woman: red hair", "woman with red hair"),
        ("man: bald", "bald man"),
        ("family: man, boy", "family, man, boy"),
        ("woman\u2019s boot", "woman's boot"),
        ("  red   apple ", "red apple"),
    ],
)
def test_labels_become_words(label, words):
    assert label_words(label) == words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("red apple", "a red apple"),
        ("oyster", "an oyster"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("one o'clock", "a one o'clock"),
        ("hourglass done", "an hourglass done"),
        ("grapes", "grapes"),
        ("french fries", "french fries"),
        ("bus", "a bus"),
        ("glass of milk", "a glass of milk"),
        ("bread", "bread"),
        ("green salad", "green salad"),
        ("Statue of Liberty", "Statue of Liberty"),
        ("Christmas tree", "a Christmas tree"),
        ("flag of Peru", "the flag of Peru"),
        ("a boy plays soccer", "a boy plays soccer"),
        ("no bicycles", "no bicycles"),
        ("woman lifting weights", "a woman lifting weights"),
    ],
)
def test_articles_are_those_of_english(words, expected):
    assert with_article(words) == expected


def test_the_three_lengths():
    tints = Palette(colours=("red", "green"), background="white")
    assert short(APPLE) == "red apple"
    assert medium(APPLE) == "red apple, flat style"
    expected = "a drawing of a red apple in flat style, food and drink, fruit, diet; with green on white"
    assert long(APPLE, tints) == expected


def test_no_colour_is_said_twice():
    only_red = Palette(colours=("red",), background="white")
    assert long(APPLE, only_red).endswith("fruit, diet; on white")
    pear = APPLE | {"label": "pear", "tags": []}
    assert long(pear, Palette(colours=("green", "brown"), background=None)).endswith("fruit; green and brown")
    assert long(pear, Palette(colours=("green", "brown", "red"), background="blue")).endswith(
        "green, brown and red on blue"
    )


@pytest.mark.parametrize(
    ("group", "subgroup", "topics"),
    [
        ("animals-nature", "animal-bird", "animals and nature, bird"),
        ("travel-places", "transport-ground", "travel and places, ground transport"),
        ("smileys-emotion", "face-concerned", "faces and emotion, concerned face"),
        ("people-body", "person-role", "people and body, profession"),
        ("signs-and-symbols", "map-symbols", "signs and symbols, map symbols"),
        ("objects", "other-object", "object"),
        ("objects", "tool", "object, tool"),
    ],
)
def test_groups_read_as_words(group, subgroup, topics):
    meta = {"label": "pear", "group": group, "subgroup": subgroup}
    assert long(meta, Palette(colours=(), background=None)) == f"a drawing of a pear, {topics}"


def test_without_colours_or_groups_nothing_hangs():
    assert long({"label": "pear"}, Palette(colours=(), background=None)) == "a drawing of a pear"


def test_the_task_measures_colours_and_names_its_sources(blobs, stored):
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill="#cc1020")
    ImageDraw.Draw(image).rectangle((30, 2, 45, 20), fill="#209020")
    row = stored(image, **APPLE)
    (result,) = Caption(blobs=blobs)([row])
    assert result.drop is None
    assert result.value["long"]["text"].endswith("; with green on white")
    assert result.value["long"]["source"] == "label, style, group, tags, measured colours"
    assert result.value["short"] == {"text": "red apple", "source": "label"}
    assert result.value["colours"] == ["red", "green"]
    seen = Row(id=row.id, blob=row.blob, meta=row.meta, results={"caption": result})
    assert captions(seen)["medium"] == "red apple, flat style"


@pytest.mark.parametrize("meta", [{}, {"label": ""}, {"label": "  "}])
def test_rows_without_a_label_go(blobs, stored, meta):
    assert Caption(blobs=blobs)([stored(Image.new("RGB", (9, 9)), **meta)])[0].drop == "no label"
