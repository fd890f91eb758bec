"""The forms of a caption: under which name it is stored, its class of length, its format, and how many words it has."""

from dataclasses import dataclass

__all__ = ["FORMS", "REWRITTEN", "Form"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One way to say what a picture shows; the words are those that a model's answer must keep to."""

    name: str
    length: str  # short, medium or long
    format: str  # phrase, sentence, paragraph, tags or json
    least: int
    most: int


FORMS = {
    form.name: form
    for form in (
        Form(name="short", length="short", format="phrase", least=1, most=12),
        Form(name="medium", length="medium", format="sentence", least=4, most=40),
        Form(name="long", length="long", format="paragraph", least=12, most=400),
        Form(name="paragraph", length="long", format="paragraph", least=25, most=160),
        Form(name="tags", length="short", format="tags", least=1, most=45),
        Form(name="structured", length="medium", format="json", least=1, most=200),
    )
}
REWRITTEN = ("tags", "short", "medium", "paragraph", "structured")  # what a language model makes of a long caption
