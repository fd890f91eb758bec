"""Was a picture generated: what its file says first, then watermarks in its pixels, then a trained head."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from krea_data.classify.evidence import RULES, Evidence, Rule, judged
from krea_data.classify.head import Head
from krea_data.classify.matched import Draws, encoded, encodings
from krea_data.classify.metadata import fields
from krea_data.classify.provenance import c2pa_evidence
from krea_data.classify.watermark import MESSAGES, Message, watermark_evidence
from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.embed import Embedder
from krea_data.tasks.picture import decode
from krea_data.vectors import vectors_of

__all__ = ["Synthetic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """Writes an answer (yes, no, unsure), a score and the evidence that decided; by itself it drops nothing.

    evidence: "c2pa", the name of a rule over metadata, "watermark", "head", or "none"; `detail` says what was found.
        A file that states its generator scores 1. The head is asked where nothing says yes. Without head or vector the
        answer is "unsure" and there is no score: metadata that is missing proves nothing.
    looks: with an `embedder`, the head judges this many re-encodings of the picture besides it. The score is their
        median, and the answer "unsure" where one of them is a yes and another a no.
    drop_from: drop "yes" of at least that score as "synthetic".
    """

    blobs: Blobs
    head: Head | None = None
    embedder: Embedder | None = None
    looks: int = 0
    draws: Draws = Draws()  # noqa: RUF009 (it is frozen)
    rules: tuple[Rule, ...] = RULES
    messages: tuple[Message, ...] = MESSAGES
    drop_from: float | None = None
    source: str = "embed"
    name: str = "synthetic"
    after: tuple[str, ...] = ("embed",)
    batch: int = 32
    columns: ClassVar[dict[str, type]] = {"score": float, "answer": str, "evidence": str, "version": str}
    indexed: ClassVar[tuple[str, ...]] = ("score",)

    def __post_init__(self) -> None:
        if self.drop_from is not None and not 0 <= self.drop_from <= 1:
            raise ValueError(f"drop_from {self.drop_from} is no score; use 0 to 1, or None to drop nothing")
        if self.looks < 0 or (self.looks and self.embedder is None):
            raise ValueError(f"looks {self.looks} needs an embedder for the re-encodings, and is at least 0")
        if self.head and self.embedder and self.embedder.name != self.head.embedder:
            raise ValueError(f"the head wants vectors of {self.head.embedder}, not of {self.embedder.name}")

    @property
    def reads(self) -> tuple[str, ...]:
        """The tasks whose results it needs."""
        return (self.source,)

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        vectors = self._vectors(rows)
        return [self._judge(row, vectors.get(row.id)) for row in rows]

    def _vectors(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        if self.head is None:
            return {}
        kept, vectors = vectors_of(rows, self.source)
        if kept and (model := str(kept[0].results[self.source].value["model"])) != self.head.embedder:
            raise ValueError(f"the vectors come from {model}, the head {self.head.name} wants {self.head.embedder}")
        return {row.id: vector for row, vector in zip(kept, vectors, strict=True)}

    def _judge(self, row: Row, vector: np.ndarray | None) -> Result:
        data = self.blobs.get(row.blob)
        found, image = self._stated(data)
        if (found is None or found.answer != "yes") and self.head is not None and vector is not None:
            return self._result(self._looked(self.head, row, image or decode(data)[0], vector, found))
        if found is None:
            return self._result({"answer": "unsure", "evidence": "none"})
        score = {"score": 1.0} if found.answer == "yes" else {}
        return self._result({**score, "answer": found.answer, "evidence": found.rule, "detail": found.detail})

    def _stated(self, data: bytes) -> tuple[Evidence | None, Image.Image | None]:
        """What the file says; the picture where it had to be decoded for its watermark."""
        stated = [one for one in (c2pa_evidence(data), judged(fields(data), self.rules)) if one is not None]
        sure = next((one for one in stated if one.answer == "yes"), None)
        if sure is not None or not self.messages:
            return sure or (stated[0] if stated else None), None
        image = decode(data)[0]
        marked = watermark_evidence(image, self.messages)
        return marked or (stated[0] if stated else None), image

    def _looked(
        self, head: Head, row: Row, image: Image.Image, vector: np.ndarray, found: Evidence | None
    ) -> dict[str, Any]:
        """The head's answer; with evidence that a part was generated, a "no" becomes "unsure"."""
        vectors = vector[None]
        if self.looks and self.embedder is not None:
            drawn = encodings(self.looks, 0, zlib.crc32(row.id.encode()), self.draws)
            vectors = np.concatenate([vectors, self.embedder([encoded(image, chain) for chain in drawn])])
        scores = head(vectors)
        answers, score = set(head.limits.answers(scores)), float(np.median(scores))
        answer = "unsure" if {"yes", "no"} <= answers else head.limits.answer(score)
        value: dict[str, Any] = {
            "score": round(score, 6),
            "answer": answer,
            "evidence": "head",
            "version": head.version,
        }
        if len(scores) > 1:
            value["scores"] = [round(float(one), 4) for one in scores]
        if found is not None and answer != "yes":
            value |= {"answer": "unsure", "evidence": found.rule, "detail": found.detail}
        return value

    def _result(self, value: dict[str, Any]) -> Result:
        dropped = self.drop_from is not None and value["answer"] == "yes" and value["score"] >= self.drop_from
        return Result(value=value, drop="synthetic" if dropped else None)
