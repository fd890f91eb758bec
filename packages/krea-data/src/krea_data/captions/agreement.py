"""Whether a caption agrees with what others say of the same picture: its label, the text in it, other captions.

A caption is never compared with what it was made from: one by rule not with the label, a rewritten one not with the
long caption that it shortens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krea_data.captions.faults import quoted
from krea_data.captions.known import clean_meta, read_texts
from krea_data.captions.overlap import Weights, contained, overlap, stems
from krea_data.captions.records import caption_rows
from krea_data.captions.rules import has_label
from krea_data.rows import Row
from krea_data.tasks.caption import label_words

__all__ = ["Encoder", "Said", "Scorer", "said_of", "weights_of"]

Encoder = Callable[[Sequence[str]], NDArray[np.floating]]

_STATED = ("title", "description", "alt", "caption")
_LEAST_READ = 3  # letters of a text that was read, below which it is no evidence


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What is said of a picture: by whom, and for captions in which form. `ocr` evidence is a list of texts in one."""

    origin: str  # label, stated, ocr, or the task whose model it was
    text: str
    form: str = ""


def said_of(
    row: Row, *, task: str = "caption", described: Sequence[str] = ("describe",), ocr: str = "ocr"
) -> list[Said]:
    """Everything that is said of a row: label with tags, stated texts, read texts, descriptions, and all captions.

    A caption by a language model has the origin of the first description, which it was made from.
    """
    meta, _ = clean_meta(row.meta)
    found: list[Said] = []
    if has_label(meta):
        words = [label_words(str(meta["label"])), *(str(tag) for tag in meta.get("tags", ()))]
        found.append(Said(origin="label", text=", ".join(words)))
    found += [Said(origin="stated", text=str(meta[key])) for key in _STATED if str(meta.get(key) or "").strip()]
    read = [text for text in read_texts(row, ocr) if sum(letter.isalpha() for letter in text) >= _LEAST_READ]
    if read:
        found.append(Said(origin="ocr", text="\n".join(read)))
    for name in described:
        text = str(row.results[name].value.get("text") or "") if row.kept_by(name) else ""
        found += [Said(origin=name, text=text)] if text else []
    models = next(iter(described), "describe")
    for one in caption_rows(row, task):
        if one.format != "json":
            by_model = one.source in ("vlm", "llm") or one.source.startswith("rules on the long")
            found.append(Said(origin=models if by_model else "label", text=one.text, form=one.form))
    return found


def weights_of(rows: Sequence[Row], **names: str | Sequence[str]) -> Weights:
    """The weights of words in everything that is said of these rows."""
    return Weights.of(said.text for row in rows for said in said_of(row, **names))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """The agreement of two texts, from 0 to 1: by `encoder` (the cosine of their vectors) where there is one, else by
    the weighted words they share. Text that was read is always compared by words.
    """

    weights: Weights
    encoder: Encoder | None = None

    def __call__(self, caption: str, evidence: Sequence[Said]) -> tuple[float | None, dict[str, float]]:
        """The mean over the evidence, None where there is none, and the scores by origin."""
        scores: dict[str, list[float]] = {}
        for one in evidence:
            scores.setdefault(one.origin, []).append(self._pair(caption, one))
        by_origin = {origin: round(sum(found) / len(found), 4) for origin, found in scores.items()}
        mean = round(sum(by_origin.values()) / len(by_origin), 4) if by_origin else None
        return mean, by_origin

    def _pair(self, caption: str, other: Said) -> float:
        if other.origin == "ocr":
            return self._read(caption, other.text)
        if self.encoder is None:
            return overlap(stems(caption), stems(other.text), self.weights)
        one, two = np.asarray(self.encoder([caption, other.text]), dtype=np.float64)
        length = float(np.linalg.norm(one) * np.linalg.norm(two))
        return float(np.clip(one @ two / length, 0, 1)) if length else 0.0

    def _read(self, caption: str, text: str) -> float:
        """How much of the read text the caption has, or of the caption's quotations the text, whichever is more."""
        read = stems(text)
        quotes = stems(" ".join(quoted(caption)))
        backed = contained(quotes, read, self.weights) if quotes else 0.0
        return max(contained(read, stems(caption), self.weights), backed)


def evidence_for(origin: str, said: Sequence[Said]) -> list[Said]:
    """What may be held against a caption of this origin: all that is no caption by form and comes from elsewhere."""
    return [one for one in said if one.origin != origin and not one.form]


def by_form(said: Sequence[Said], scorer: Scorer) -> Mapping[str, float | None]:
    """The agreement of each caption with what others say."""
    return {one.form: scorer(one.text, evidence_for(one.origin, said))[0] for one in said if one.form}
