"""A scripted language model for tests."""

from collections.abc import Callable, Iterable, Sequence

from krea_expander.interfaces import LanguageModelError, Message

__all__ = ["ScriptedModel"]

Line = str | LanguageModelError | Callable[[Sequence[Message]], str]


class ScriptedModel:
    """Answers line by line; an error is raised, a function is given the messages; the last line is repeated.

    `calls` lists (messages, n, seed) of each call.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = list(lines)
        self.calls: list[tuple[list[Message], int, int]] = []

    def __call__(self, messages: Sequence[Message], n: int, seed: int) -> list[str]:
        self.calls.append((list(messages), n, seed))
        return [self._next(messages) for _ in range(n)]

    def _next(self, messages: Sequence[Message]) -> str:
        line = self._lines.pop(0) if len(self._lines) > 1 else self._lines[0]
        if isinstance(line, LanguageModelError):
            raise line
        return line if isinstance(line, str) else line(messages)
