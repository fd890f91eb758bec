"""What the expander asks of a language model.

Errors of a model, drawn as a tree; `expand` answers each with the user's own prompt and says why:

LanguageModelError
+-- UnavailableError   no answer: not reachable, too slow, or failing on its side
+-- LimitedError       the service asks to wait longer than we may
+-- UnusableError      an answer that is not what such a service gives: a web page, a refusal of the key, a wrong shape
"""

from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict

__all__ = ["LanguageModel", "LanguageModelError", "LimitedError", "Message", "UnavailableError", "UnusableError"]


class LanguageModelError(Exception):
    """Any failure of a language model."""


class UnavailableError(LanguageModelError):
    """No answer: not reachable, too slow, or failing on its side."""


class LimitedError(LanguageModelError):
    """The service asks to wait longer than we may."""


class UnusableError(LanguageModelError):
    """The answer is not one that a chat service gives."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class LanguageModel(Protocol):
    """Messages to `n` answers; the same seed gives the same answers where the model can do that."""

    def __call__(self, messages: Sequence[Message], n: int, seed: int) -> list[str]: ...
