import pytest
from hypothesis import given
from hypothesis import strategies as st
from krea_data.captions.overlap import Weights, contained, overlap, stem, stems


@pytest.mark.parametrize(
    "words",
    [
        ("run", "runs", "running"),
        ("berry", "berries"),
        ("box", "boxes"),
        ("bake", "bakes", "baking", "baked"),
        ("dance", "dances", "dancing", "danced"),
        ("decorate", "decorating"),
        ("boat", "boats", "boating"),
        ("glass", "glasses"),
        ("house", "houses"),
        ("bus",),
        ("red",),
        ("king",),
    ],
)
def test_forms_of_a_word_have_one_stem(words: tuple[str, ...]) -> None:
    assert len({stem(word) for word in words}) == 1


def test_different_words_stay_different() -> None:
    words = ["red", "bus", "king", "sing", "glass", "news", "bed", "boat", "bat", "lens", "ring", "string"]
    words += ["car", "care", "plan", "plane", "pin", "pine"]
    assert len({stem(word) for word in words}) == len(words)


def test_small_words_accents_and_signs_do_not_count() -> None:
    assert stems("The Caf\u00e9's boats, on a LAKE!") == stems("cafe s boat lake")
    assert stems("\u732b\u3068\u72ac") == {"\u732b", "\u3068", "\u72ac"}


def test_rare_words_say_more() -> None:
    weights = Weights.of(["a drawing of an apple", "a drawing of a pear", "a drawing of a violin"])
    one, right, wrong = stems("drawing, apple"), stems("an apple"), stems("a drawing")
    assert contained(right, one, weights) == contained(wrong, one, weights) == 1
    both = stems("drawing violin")
    assert contained(both, stems("violin"), weights) > 0.6 > 0.4 > contained(both, stems("drawing"), weights)
    assert overlap(stems("apple"), stems("a red apple on a tree"), weights) == 1
    assert overlap(stems(""), stems("apple"), weights) == 0


@given(st.text(), st.text())
def test_overlap_is_a_share_and_the_same_either_way(one: str, other: str) -> None:
    weights = Weights.of([one, other, "a third"])
    first, second = overlap(stems(one), stems(other), weights), overlap(stems(other), stems(one), weights)
    assert 0 <= first <= 1 + 1e-9
    assert abs(first - second) < 1e-9 or abs(weights.mass(stems(one)) - weights.mass(stems(other))) < 1e-9
    if stems(one):
        assert overlap(stems(one), stems(one), weights) == pytest.approx(1)
