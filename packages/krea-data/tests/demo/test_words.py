from collections import Counter

import pytest
from krea_data.demo.words import file_label, label, tags


@pytest.mark.parametrize(
    ("stem", "author", "expected"),
    [
        ("wooden_barrel_petri_lumm_01", "Petri Lummemaki", "wooden barrel"),
        ("star_70pt17step", "somebody", "star"),
        ("closed-book", "unknown", "closed book"),
        ("petri", "Petri", "petri"),
        ("007", "unknown", "007"),
    ],
)
def test_file_names_become_names(stem, author, expected):
    assert file_label(stem, author) == expected


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Red_Apple", "red apple"),
        ("Various Cliparts", "pear"),
        ("Shared", "pear"),
        ("icon (2004)", "pear"),
        ("http://example.org", "pear"),
        ("", "pear"),
        ("x" * 41, "pear"),
    ],
)
def test_titles_of_collections_are_not_used(title, expected):
    assert label(title, Counter({"Shared": 4, "Red_Apple": 3}), "pear_01", "unknown") == expected


def test_tags_are_words_once():
    stated = [
        "Fruit",
        "fruit",
        "red_thing",
        "hash",
        "hash(0x1)",
        "11",
        "a@b.org",
        "apple",
        "lemon_theme_icon",
        "\u00e9t\u00e9",
    ]
    assert tags(stated, no=["apple"]) == ["fruit", "red thing", "\u00e9t\u00e9"]
