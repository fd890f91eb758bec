import pytest
from krea_expander.cut import whole_sentences


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("A red apple. It lies on a", "A red apple."),
        ('A sign says "Stop!" and a man', 'A sign says "Stop!"'),
        ("Two cats. Three dogs.", "Two cats. Three dogs."),
        ("a lens of 1.4 and no", "a lens of 1.4 and no"),
        ("no end at all", "no end at all"),
        ("", ""),
    ],
)
def test_the_unfinished_sentence_goes(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole
