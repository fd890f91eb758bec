"""The captions of a picture in every length and form: by a language model from a long caption, and by rule without one.

It takes the place of `krea_data.tasks.caption.Caption` under the same name and with the same keys: where no model has
described a row, short, medium and long are word for word what that task writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from krea_data.captions.again import Held
from krea_data.captions.asking import Chat
from krea_data.captions.forms import REWRITTEN
from krea_data.captions.known import clean_meta, read_texts
from krea_data.captions.prompts import Template, packaged
from krea_data.captions.records import record
from krea_data.captions.rewriting import Rewritten, rewrite
from krea_data.captions.rules import from_label, from_long, has_label
from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.colour import Palette, palette
from krea_data.tasks.picture import decode

__all__ = ["Rewrite"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewrite:
    """Writes a caption for each form, `{"short": {"text", "source", "length", "format", "ocr"}, ...}`, and the colours.

    The long caption is the one of `describe`, where that has one, and else by rule; `chat` makes of a described one
    tags, short, medium, paragraph and structured, and what it fails at is by rule too, with its reason under `faults`.
    A caption of a model also has `model` and `prompt`. Drops "no caption": rows with neither description nor label. A
    service that fails for a reason that may pass makes the row fail alone, unless `keep_lost` (see `Describe`).
    """

    blobs: Blobs
    chat: Chat | None = None
    template: Template = field(default_factory=lambda: packaged("rewrite"))
    tries: int = 2
    language: str | None = "en"
    keep_lost: bool = False
    name: str = "caption"
    after: tuple[str, ...] = ("describe",)
    described: str = "describe"
    ocr: str = "ocr"
    batch: int = 64
    columns: ClassVar[dict[str, type]] = {"long_source": str, "by_rule": int, "failed": str}
    held: Held[Rewritten] = field(default_factory=Held, repr=False, compare=False)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tasks whose results it needs."""
        return (self.described, self.ocr)

    @property
    def timeout_s(self) -> float:
        """The longest that a batch may take."""
        return 300.0 + (self.tries * self.chat.patience_s(self.batch) if self.chat is not None else 0.0)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        outcomes = self.held.settle([row.id for row in rows], lambda places: self._ask(rows), keep_lost=self.keep_lost)
        return [self._result(row, one) for row, one in zip(rows, outcomes, strict=True)]

    def _description(self, row: Row) -> Mapping[str, Any]:
        """What `describe` wrote, if that has a text."""
        value = row.results[self.described].value if row.kept_by(self.described) else {}
        return value if value.get("text") else {}

    def _ask(self, rows: Sequence[Row]) -> list[Rewritten]:
        found = [Rewritten() for _ in rows]
        places = [place for place, row in enumerate(rows) if self._description(row)]
        if self.chat is None or not places:
            return found
        captions = [str(self._description(rows[place])["text"]) for place in places]
        known = [read_texts(rows[place], self.ocr) for place in places]
        said = rewrite(self.chat, self.template, captions, known, tries=self.tries, language=self.language)
        for place, one in zip(places, said, strict=True):
            found[place] = one
        return found

    def _result(self, row: Row, rewritten: Rewritten) -> Result:
        described, (meta, taken) = self._description(row), clean_meta(row.meta)
        if not described and not has_label(meta):
            return Result(drop="no caption")
        tints = palette(decode(self.blobs.get(row.blob))[0])
        value: dict[str, Any] = self._by_rule(row, meta, tints)
        if described:
            kept = {key: described[key] for key in ("source", "model", "prompt", "ocr")}
            value["long"] = record("long", described["text"], **kept)
        if self.chat is not None:
            made = {"model": self.chat.model, "prompt": self.template.version, "ocr": bool(described.get("ocr"))}
            value |= {form: record(form, text, "llm", **made) for form, text in rewritten.texts.items()}
        fallen = [form for form in REWRITTEN if form not in rewritten.texts] if described and self.chat else []
        notes = [*rewritten.notes, *([f"control characters removed from the metadata: {taken}"] if taken else [])]
        value |= {"colours": list(tints.colours), "background": tints.background}
        value |= {"long_source": value["long"]["source"], "by_rule": len(fallen)}
        value |= {"notes": notes} if notes else {}
        value |= {"faults": rewritten.faults} if rewritten.faults else {}
        value |= {"failed": rewritten.failed, "error": rewritten.error} if rewritten.failed is not None else {}
        return Result(value=value)

    def _by_rule(self, row: Row, meta: Mapping[str, Any], tints: Palette) -> dict[str, Any]:
        texts = read_texts(row, self.ocr)
        if has_label(meta):
            return from_label(meta, tints, texts)
        return from_long(str(self._description(row)["text"]), tints, texts)
