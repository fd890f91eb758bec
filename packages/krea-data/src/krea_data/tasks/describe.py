"""A long caption by a vision-language model that is told what was read in the picture and what is known of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from krea_data.captions.again import Held
from krea_data.captions.asking import Answer, Chat, Question
from krea_data.captions.clean import cleaned, plain_text
from krea_data.captions.faults import fault, unread
from krea_data.captions.forms import FORMS
from krea_data.captions.known import metadata_text, read_texts, texts_text
from krea_data.captions.prompts import Template, packaged
from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.picture import decode

__all__ = ["FIELDS", "Describe"]

FIELDS = ("label", "title", "description", "concept", "tags", "group", "subgroup", "style", "camera", "place", "date")


@dataclass(frozen=True, kw_only=True, slots=True)
class Describe:
    """Writes the model's caption, or why there is none; keeps every row.

    The value: text, source "vlm", model, prompt (its version), ocr (whether read text stood in the prompt), notes on
    what was cleaned away, `unread` (quotations that the reader has not found; they may be misread or invented). Where
    the model refuses or gives no usable caption in `tries` attempts, `failed` is the reason, `error` says it in words,
    and there is no text. Where a service fails for a reason that may pass (a time-out, 429, 5xx, a reply that is none),
    the row fails alone and the table gives it another attempt, and in the end it is among the dead with that reason;
    with `keep_lost` it is kept with the reason at once.

    `fields` of the row's meta stand in the prompt. A caption that was told the label agrees with it more easily; leave
    it out where their agreement is to be evidence.
    """

    blobs: Blobs
    chat: Chat
    template: Template = field(default_factory=lambda: packaged("describe"))
    fields: tuple[str, ...] = FIELDS
    tries: int = 2
    language: str | None = "en"
    keep_lost: bool = False
    name: str = "describe"
    after: tuple[str, ...] = ("ocr",)
    ocr: str = "ocr"
    batch: int = 32
    columns: ClassVar[dict[str, type]] = {"failed": str, "model": str, "prompt": str}
    indexed: ClassVar[tuple[str, ...]] = ("failed",)
    held: Held[Answer] = field(default_factory=Held, repr=False, compare=False)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tasks whose results it needs."""
        return (self.ocr,)

    @property
    def timeout_s(self) -> float:
        """The longest that a batch may take."""
        return 60.0 + self.tries * self.chat.patience_s(self.batch)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        outcomes = self.held.settle([row.id for row in rows], lambda places: self._ask(rows), keep_lost=self.keep_lost)
        return [self._result(row, answer) for row, answer in zip(rows, outcomes, strict=True)]

    def _question(self, row: Row) -> Question:
        known = {"metadata": metadata_text(row.meta, self.fields), "text": texts_text(read_texts(row, self.ocr))}
        image = decode(self.blobs.get(row.blob))[0]
        user = self.template.filled("user", **known)
        return Question(system=self.template.filled("system", **known), text=user, image=image)

    def _ask(self, rows: Sequence[Row]) -> list[Answer]:
        """Answers with clean texts; what is no caption is asked for again, up to `tries` times in all."""
        questions = [self._question(row) for row in rows]
        answers: dict[int, Answer] = {}
        for _ in range(max(1, self.tries)):
            open_places = [place for place in range(len(rows)) if place not in answers or _unusable(answers[place])]
            if not open_places:
                break
            said = self.chat([questions[place] for place in open_places])
            answers |= dict(zip(open_places, map(self._judged, said), strict=True))
        return [answers[place] for place in range(len(rows))]

    def _judged(self, answer: Answer) -> Answer:
        if answer.failed is not None:
            return answer
        text, notes = cleaned(answer.text)
        reason = fault(text, FORMS["long"], language=self.language)
        if reason is not None:
            return Answer(failed=reason, error=f"the model answered {len(answer.text)} characters: {text[:120]!r}")
        return Answer(text=text, notes=(*answer.notes, *notes))

    def _result(self, row: Row, answer: Answer) -> Result:
        texts = read_texts(row, self.ocr)
        value: dict[str, Any] = {
            "source": "vlm",
            "model": self.chat.model,
            "prompt": self.template.version,
            "ocr": texts_text(texts) != "none",
            "notes": list(answer.notes),
        }
        if answer.failed is not None:
            return Result(value=value | {"failed": answer.failed, "error": plain_text(answer.error)[0]})
        odd = {"unread": missing} if (missing := unread(answer.text, texts)) else {}
        return Result(value=value | {"text": answer.text} | odd)


def _unusable(answer: Answer) -> bool:
    return answer.failed is not None and not answer.again
