import pytest
from krea_data.captions.faults import fault, quoted, structured_fault, unread
from krea_data.captions.forms import FORMS

GOOD = "A red apple with a green leaf lies on a white table in front of a window, and its shadow falls to the left."


def test_good_captions_have_no_fault() -> None:
    assert fault(GOOD, FORMS["long"]) is None
    assert fault("red apple", FORMS["short"]) is None
    assert fault("red apple, green leaf, table", FORMS["tags"]) is None
    assert fault("The drawing room has a piano.", FORMS["medium"]) is None


@pytest.mark.parametrize(
    ("text", "form", "reason"),
    [
        ("", "long", "empty"),
        ("...!", "short", "empty"),
        ("I cannot help with that request because it shows a person and that is not allowed here.", "long", "refused"),
        ("I'm sorry, but I can\u2019t describe this.", "long", "refused"),
        ("As an AI language model, I do not see pictures, so I will imagine an apple for you.", "long", "refused"),
        ("The image shows a red apple on a table.", "medium", "boilerplate"),
        ("In this picture, a red apple lies on a table.", "medium", "boilerplate"),
        ("A red apple.", "long", "too short"),
        ("apple " * 41, "medium", "too long"),
        ("x" * 100_000, "long", "too long"),
        ("the red apple lies " * 8, "long", "repeats"),
        ("Ein roter Apfel liegt auf dem Tisch und ist mit einem Blatt im Licht der Sonne.", "long", "language"),
        ("Una manzana roja sobre la mesa con una hoja verde y el sol que brilla en los campos", "long", "language"),
        ("\u5728\u684c\u5b50\u4e0a\u7684\u82f9\u679c", "short", "language"),
    ],
)
def test_what_is_no_caption_has_its_reason(text: str, form: str, reason: str) -> None:
    assert fault(text, FORMS[form]) == reason


def test_quotations_must_have_been_read() -> None:
    text = 'A red sign says "Stop here" and "exit 42".'
    assert quoted(text) == ["Stop here", "exit 42"]
    assert unread(text, ["STOP-HERE", "left"]) == ["exit 42"]
    assert fault(text, FORMS["medium"], known=["STOP HERE", "Exit 42"]) is None
    assert fault(text, FORMS["medium"], known=["STOP HERE"]) == "invented text"
    assert fault(text, FORMS["medium"]) is None


def test_quoted_text_may_be_of_another_language() -> None:
    text = 'A shop sign with the words "\u3044\u3089\u3063\u3057\u3083\u3044\u307e\u305b" over the door of the shop.'
    assert fault(text, FORMS["medium"]) is None


def test_structured_captions_have_known_keys() -> None:
    good = {"subject": "apple", "objects": ["leaf"], "text": ["STOP"]}
    assert structured_fault(good, known=["stop"]) is None
    assert structured_fault(good, known=["go"]) == "invented text"
    assert structured_fault({"objects": []}) == "no structure"
    assert structured_fault({"subject": "apple", "mood": "good"}) == "no structure"
    assert structured_fault({"subject": "apple", "objects": "leaf"}) == "no structure"
    assert structured_fault(["apple"]) == "no structure"
    assert structured_fault({"subject": "I cannot do that"}) == "refused"
    assert structured_fault({"subject": "a" * 5000}) == "too long"


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="language 'xx' is not known"):
        fault(GOOD, FORMS["long"], language="xx")
