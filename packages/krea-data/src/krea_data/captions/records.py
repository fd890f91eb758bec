"""Captions as rows: a text, its form, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from krea_data.captions.forms import FORMS
from krea_data.rows import Row

__all__ = ["CaptionRow", "caption_rows", "record"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRow:
    """One caption of a picture. `source` says what it was made from; `model` and `prompt` are empty for rules.

    `agreement` is how well it agrees with what other sources say, from 0 to 1, None where there are none or nobody has
    compared them.
    """

    id: str
    form: str
    text: str
    length: str
    format: str
    source: str
    model: str = ""
    prompt: str = ""
    ocr: bool = False
    agreement: float | None = None


def record(
    form: str, text: str, source: str, *, model: str = "", prompt: str = "", ocr: bool = False
) -> dict[str, Any]:
    """A caption as it lies in a result; what is empty is left out, so that captions by rule stay as short as before."""
    kind = FORMS[form]
    made = {"model": model, "prompt": prompt} if model else {}
    return {"text": text, "source": source, "length": kind.length, "format": kind.format, **made, "ocr": ocr}


def caption_rows(row: Row, task: str = "caption", agreement: str = "agreement") -> list[CaptionRow]:
    """The captions that a task kept of a row, in the order of their forms, with their agreement where that is known."""
    if not row.kept_by(task):
        return []
    value = row.results[task].value
    known: Mapping[str, float | None] = row.results[agreement].value.get("by", {}) if agreement in row.results else {}
    found = []
    for form in FORMS:
        one = value.get(form)
        if not isinstance(one, Mapping):
            continue
        found.append(
            CaptionRow(
                id=row.id,
                form=form,
                text=one["text"],
                length=one.get("length", FORMS[form].length),
                format=one.get("format", FORMS[form].format),
                source=one["source"],
                model=one.get("model", ""),
                prompt=one.get("prompt", ""),
                ocr=bool(one.get("ocr", False)),
                agreement=known.get(form),
            )
        )
    return found
