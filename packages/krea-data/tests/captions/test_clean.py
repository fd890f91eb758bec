import pytest
from krea_data.captions.clean import cleaned, plain_text, whole_sentences


@pytest.mark.parametrize(
    ("text", "clean", "taken"),
    [
        ("a red\x00 apple\x07", "a red apple", 2),
        ("a red\x0bapple", "a red apple", 1),
        ("two\r\nlines\tand a tab", "two lines and a tab", 0),
        ("bidi \u202eelppa\u202c", "bidi elppa", 2),
        ("half \ud800 pair", "half pair", 1),
        ("zero\u200bwidth \ufeffmark", "zerowidth mark", 2),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469", 0),
        ("cafe\u0301", "caf\u00e9", 0),
    ],
)
def test_control_characters_go_and_are_counted(text: str, clean: str, taken: int) -> None:
    assert plain_text(text) == (clean, taken)


@pytest.mark.parametrize(
    ("text", "clean", "note"),
    [
        ("The image shows a red apple.", "A red apple.", "stock opening removed"),
        ("Sure! Here is a caption: This picture depicts two boats.", "Two boats.", "stock opening removed"),
        ("In this image, we can see a cat.", "A cat.", "stock opening removed"),
        ("In the photograph there is a dog.", "A dog.", "stock opening removed"),
        ('"A red apple on a table."', "A red apple on a table.", "wrapping removed"),
        ("**Caption:** A red apple.", "A red apple.", "wrapping removed"),
        ("```\nA red apple.\n```", "A red apple.", "code fence removed"),
        ("A \x1bred apple.", "A red apple.", "control characters removed: 1"),
    ],
)
def test_what_is_wrapped_around_a_caption_goes_and_is_noted(text: str, clean: str, note: str) -> None:
    assert cleaned(text) == (clean, (note,))


@pytest.mark.parametrize(
    "text",
    [
        "The picture frame hangs over the drawing room's door.",
        "In the drawing room stands a piano.",
        '"STOP" stands on a red sign and "GO" on a green one, "NOW" below.',
        "Sure footed goats on a cliff.",
    ],
)
def test_captions_that_only_look_alike_stay(text: str) -> None:
    assert cleaned(text) == (text, ())


def test_a_cut_answer_ends_with_a_sentence() -> None:
    assert whole_sentences('A sign says "Stop." It is re') == 'A sign says "Stop."'
    assert whole_sentences("no end at all") == "no end at all"
