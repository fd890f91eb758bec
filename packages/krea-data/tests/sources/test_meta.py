import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from krea_data.checks import check_row
from krea_data.rows import Row
from krea_data.sources.meta import clean, described, sidecar


def test_known_words_come_to_known_places():
    stated = {
        "TEXT": " a red apple ",
        "license": "CC BY 4.0",
        "photographer": "A. Nobody",
        "keywords": "red, fruit;red",
    }
    assert described(stated | {"width": 40}, source="s") == {
        "source": "s",
        "caption": "a red apple",
        "tags": ["red", "fruit"],
        "licence": "CC-BY-4.0",
        "licence_stated": "CC BY 4.0",
        "author": "A. Nobody",
        "stated": {"width": 40},
    }


def test_what_is_not_stated_is_unknown_or_as_given():
    assert described({}, source="s") == {"source": "s", "licence": "unknown", "author": "unknown"}
    assert described({}, source="s", licence="MIT", author="me") == {"source": "s", "licence": "MIT", "author": "me"}
    own = described({"license": "mine alone", "author": ""}, source="s", licence="MIT", author="me")
    assert (own["licence"], own["licence_stated"], own["author"]) == ("unknown", "mine alone", "me")


@pytest.mark.parametrize(
    ("text", "wanted", "count"),
    [
        ("plain", "plain", 0),
        ("two\r\nlines\tand a tab", "two\nlines\tand a tab", 0),
        ("nul\0 bell\x07 escape\x1b[31m", "nul  bell  escape [31m", 3),
        ("\ufeffmark", "mark", 1),
        ("half \ud83c letter", "half   letter", 1),
        ("turned \u202e around", "turned  around", 1),
        ("\x85\x9f", "", 2),
    ],
)
def test_control_characters_are_taken_out_and_counted(text, wanted, count):
    assert clean(text) == (wanted, count)


def test_captions_with_control_characters_are_kept_and_noted():
    meta = described({"caption": "a\x00b\x1b c\ud800"}, source="s")
    assert meta["caption"] == "a b  c"
    assert meta["notes"] == ["3 control characters were taken out of what was stated"]
    check_row(Row(id="s/1", blob="", meta=meta))


def test_what_no_table_can_hold_is_left_out():
    stated = {
        "size": float("nan"),
        "raw": b"\0\1",
        "when": datetime(2026, 1, 2),
        "big": 10**30,
        "deep": {"a\0": [1, {"b": {"c"}}]},
        7: "seven",
    }
    meta = described(stated, source="s")
    assert meta["stated"] == {
        "when": "2026-01-02T00:00:00",
        "big": str(10**30),
        "deep": {"a": [1, {"b": ["c"]}]},
        "7": "seven",
    }
    check_row(Row(id="s/1", blob="", meta=meta))


def test_endless_statements_are_cut():
    meta = described({"caption": "x" * 100_000, "more": "y" * 100_000, "author": "me"}, source="s")
    assert len(meta["caption"]) == 65_536
    assert "stated" not in meta
    assert meta["author"] == "me"
    assert len(meta["notes"]) == 2
    deep = []
    for _ in range(5000):
        deep = [deep]
    check_row(Row(id="s/1", blob="", meta=described({"deep": deep}, source="s")))


_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
_NAMES = st.sampled_from(["caption", "license", "author", "tags", "title", "url", "notes", "other"])


@given(st.dictionaries(_NAMES, _ANY))
def test_whatever_is_stated_can_be_stored(stated):
    meta = described(stated, source="s")
    assert json.loads(check_row(Row(id="s/1", blob="", meta=meta))) == meta


def test_files_beside_a_picture():
    parts = [
        ("json", b'{"caption": "from json", "author": "me"}'),
        ("txt", "größer".encode()),
        ("cls", b" 7\n"),
        ("x", b"?"),
    ]
    assert sidecar(parts) == {"caption": "größer", "author": "me", "class": 7}
    assert sidecar([("txt", b"  \n"), ("json", b'{"text": "t"}')]) == {"text": "t"}
    assert sidecar([("cls", b"cat")]) == {"class": "cat"}


@pytest.mark.parametrize(
    ("ending", "data", "word"),
    [
        ("json", b"{", "no JSON"),
        ("json", b"[1]", "no object"),
        ("txt", b"caf\xe9", "UTF-8"),
        ("json", b"[" * 100_000, "no JSON"),
    ],
)
def test_a_broken_file_beside_a_picture_is_a_note(ending, data, word):
    (note,) = sidecar([(ending, data)])["notes"]
    assert word in note
    assert described(sidecar([(ending, data)]), source="s")["notes"] == [note]
