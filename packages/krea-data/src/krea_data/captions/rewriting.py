"""A long caption in several forms: one question to a language model, one JSON object back, each form judged alone."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from krea_data.captions.asking import Answer, Chat, Question
from krea_data.captions.clean import cleaned, plain_text
from krea_data.captions.faults import fault, structured_fault
from krea_data.captions.forms import FORMS, REWRITTEN
from krea_data.captions.prompts import Template

__all__ = ["Rewritten", "rewrite"]

_REFUSED = ("refused", "empty")


@dataclass(slots=True)
class Rewritten:
    """The forms that are usable, why the others are not, and what failed on the way (see `Answer`)."""

    texts: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: str | None = None
    error: str = ""
    again: bool = False

    @property
    def missing(self) -> list[str]:
        """Forms that are yet to be had."""
        return [form for form in REWRITTEN if form not in self.texts]


def rewrite(
    chat: Chat,
    template: Template,
    captions: Sequence[str],
    known: Sequence[Sequence[str]],
    *,
    tries: int = 2,
    language: str | None = "en",
) -> list[Rewritten]:
    """Forms of each caption; what is missing or at fault is asked for again, up to `tries` times in all.

    `known` are, beside the caption, the texts that may be quoted.
    """
    found = [Rewritten() for _ in captions]
    for _ in range(max(1, tries)):
        places = [place for place, one in enumerate(found) if one.missing and not one.again]
        if not places:
            break
        answers = chat([_question(template, captions[place], found[place].missing) for place in places])
        for place, answer in zip(places, answers, strict=True):
            _take(found[place], answer, [captions[place], *known[place]], language)
    return found


def _question(template: Template, caption: str, forms: Iterable[str]) -> Question:
    wanted = "\n".join(f"- {template.filled(form)}" for form in forms)
    values = {"forms": wanted, "caption": json.dumps(caption, ensure_ascii=False)}
    return Question(system=template.filled("system", **values), text=template.filled("user", **values))


def _take(one: Rewritten, answer: Answer, known: Sequence[str], language: str | None) -> None:
    one.failed, one.error, one.again = answer.failed, answer.error, answer.again
    if answer.failed is not None:
        return
    value = _object(answer.text)
    if value is None:
        reason = fault(cleaned(answer.text)[0], FORMS["long"], language=None)
        one.failed = reason if reason in _REFUSED else "not json"
        one.error = f"the model answered no JSON object: {plain_text(answer.text)[0][:120]!r}"
        return
    for form in one.missing:
        text, reason, notes = _judged(form, value.get(form), known, language)
        if reason is None:
            one.texts[form] = text
            one.faults.pop(form, None)
            one.notes += [note for note in notes if note not in one.notes]
        else:
            one.faults[form] = reason


def _judged(form: str, part: Any, known: Sequence[str], language: str | None) -> tuple[str, str | None, list[str]]:
    """The text of a form, why it is not usable, and what was cleaned away."""
    if part is None:
        return "", "missing", []
    if form == "structured":
        whole, taken = _clean_parts(part)
        text = json.dumps(whole, ensure_ascii=False)
        return text, structured_fault(whole, known=known), _note(taken)
    if form == "tags" and isinstance(part, list) and all(isinstance(tag, str) for tag in part):
        part = ", ".join(dict.fromkeys(tag.strip() for tag in part if tag.strip()))
    if not isinstance(part, str):
        return "", "no text", []
    text, taken = plain_text(part)
    return text, fault(text, FORMS[form], known=known, language=language), _note(taken)


def _note(taken: int) -> list[str]:
    return [f"control characters removed: {taken}"] if taken else []


def _clean_parts(part: Any) -> tuple[Any, int]:
    if isinstance(part, str):
        return plain_text(part)
    if isinstance(part, list):
        pairs = [_clean_parts(one) for one in part]
        return [one for one, _ in pairs], sum(taken for _, taken in pairs)
    if isinstance(part, dict):
        found = {key: _clean_parts(one) for key, one in part.items()}
        return {key: one for key, (one, _) in found.items()}, sum(taken for _, taken in found.values())
    return part, 0


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object in an answer, though there be words or a code fence around it."""
    start, end = text.find("{"), text.rfind("}")
    for candidate in (text, text[start : end + 1] if 0 <= start < end else ""):
        try:
            value = json.loads(candidate, strict=False) if candidate else None
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return value
    return None
