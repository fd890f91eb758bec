"""What a model is asked and what it answers, whoever runs it: an endpoint, this process, or a test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from krea_data.runtime.cell import StartError

__all__ = ["AccessError", "Answer", "Chat", "Question"]


class AccessError(StartError):
    """The service takes no question at all: a wrong key, address or model. It ends the run; no row is at fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A system message, and one of a user with at most one picture."""

    system: str
    text: str
    image: Image.Image | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The text of an answer, or why there is none.

    `failed` is a short stable reason such as "timeout", `error` says it in words, and `again` is true where the reason
    may pass, so that the same question should be asked later. `notes` tell what was odd about a text.
    """

    text: str = ""
    failed: str | None = None
    error: str = ""
    again: bool = False
    notes: tuple[str, ...] = ()


class Chat(Protocol):
    """Answers questions, one answer each in order. It raises nothing for a single question, and `AccessError` for all.

    `model` is written beside every caption. `patience_s` is how long so many questions may take at worst.
    """

    @property
    def model(self) -> str: ...

    def patience_s(self, questions: int) -> float: ...

    def __call__(self, questions: Sequence[Question]) -> Sequence[Answer]: ...
