"""Pseudo-labels as results: what a model behind a `Labeller` answers about each picture of a sample."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from krea_data.classify.labels import Label, Labeller, Question, pseudo_labels
from krea_data.interfaces import Blobs
from krea_data.rows import Result, Row
from krea_data.tasks.picture import decode

__all__ = ["AskLabel", "labels_of", "result"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AskLabel:
    """Writes the label with the model, the question's version and the answer; drops nothing.

    A time-out, a refusal or nonsense is the row's outcome, and is kept; to ask again, let the task run under another
    name. `at_once` pictures are asked about at a time.
    """

    blobs: Blobs
    labeller: Labeller
    question: Question
    at_once: int = 4
    name: str = "label"
    after: tuple[str, ...] = ("dedup",)
    batch: int = 16
    columns: ClassVar[dict[str, type]] = {"target": bool, "outcome": str, "model": str, "prompt": str}
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        pictures = [(row.id, self._opened(row)) for row in rows]
        return [result(label) for label in pseudo_labels(pictures, self.labeller, self.question, at_once=self.at_once)]

    def _opened(self, row: Row) -> Callable[[], Image.Image]:
        return lambda: decode(self.blobs.get(row.blob))[0]


def result(label: Label) -> Result:
    """A label as it lies in its row; with `Table.put` also given ones are kept so."""
    value: Mapping[str, object] = {
        "target": label.target,
        "outcome": label.outcome,
        "model": label.model,
        "prompt": label.prompt,
        "answer": label.answer,
    }
    return Result(value=value)


def labels_of(rows: Iterable[Row], task: str = "label") -> list[Label]:
    """The labels that lie in rows."""
    return [Label(row=row.id, **row.results[task].value) for row in rows if task in row.results]
