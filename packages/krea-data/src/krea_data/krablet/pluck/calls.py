"""A call of the function on rows, and what came of each row; a batch that fails is halved until the row is alone."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from krea_data.checks import result_text
from krea_data.krablet.pluck.rows import Raw, parsed
from krea_data.rows import Result, Row

__all__ = ["QUICK_S", "Call", "Caller", "Failed", "Here", "Said", "Trouble", "answered", "built", "said", "told"]

QUICK_S = 0.005
"""So long a child goes on with further batches of a page: so much of quick ones is done again after a kill."""
_RESULT_BYTES = 64 << 20
_TRACE_LETTERS = 8000
_HERE = os.path.dirname(__file__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A row that got no answer: what was wrong in a line, below it the traceback, and how many calls it took."""

    error: str
    attempts: int = 1


Call = Callable[[Sequence[Row]], "Sequence[Result | Mapping[str, Any] | None] | None"]
"""What users write: one answer for each row, or None for no result at all."""
Said = tuple[str, str | None] | Trouble | None
"""Of one row: JSON and reason for dropping, trouble, or nothing to store."""


class Failed(Exception):  # noqa: N818 - reads as what happened
    """A call that says nothing of single rows: the function raised, ended its process or took too long."""


class Caller(Protocol):
    """Calls the function somewhere, one page at a time."""

    def start(self, rows: Sequence[Raw]) -> None:
        """Hand over a page: a batch, part of one, or several."""
        ...

    def finish(self) -> list[Said]:
        """Wait for what is said of the first of the page's rows, at least of a batch, or `Failed`."""
        ...


class Here:
    """Calls the function in this process, always on one batch."""

    def __init__(self, fn: Call, into: str, batch: int) -> None:
        self._fn, self._into, self._batch = fn, into, batch
        self._rows: Sequence[Raw] = ()

    def start(self, rows: Sequence[Raw]) -> None:
        """Take the first batch."""
        self._rows = rows[: self._batch]

    def finish(self) -> list[Said]:
        """Call the function on it."""
        try:
            return said(self._fn, parsed(self._rows), self._into)
        except Exception as error:
            raise Failed(told(error)) from error


def answered(caller: Caller, rows: Sequence[Raw], batch: int) -> list[Said]:
    """What is said of the first rows of a page that was started; where it fails, of its first batch alone."""
    if len(rows) > batch:
        try:
            return caller.finish()
        except Failed:
            rows = rows[:batch]
            caller.start(rows)
    return _halved(caller, rows, 1)


def _halved(caller: Caller, rows: Sequence[Raw], attempts: int) -> list[Said]:
    """What is said of every row of a batch that was started; a batch that fails is halved."""
    try:
        return caller.finish()
    except Failed as error:
        if len(rows) == 1:
            return [Trouble(str(error), attempts)]
    half = len(rows) // 2
    found: list[Said] = []
    for part in (rows[:half], rows[half:]):
        caller.start(part)
        found += _halved(caller, part, attempts + 1)
    return found


def built(found: Any) -> Call:
    """The function itself, or an instance where a class was given: its __init__ runs once in every worker."""
    made = isinstance(found, type) or (isinstance(found, partial) and isinstance(found.func, type))
    return found() if made else found


def said(fn: Call, rows: Sequence[Row], into: str) -> list[Said]:
    """Call the function; raises what it raises, and ValueError for the wrong number of answers."""
    answers = fn(rows)
    if answers is None:
        return [None] * len(rows)
    answers = list(answers)
    if len(answers) != len(rows):
        raise ValueError(f"the function gave {len(answers)} results for {len(rows)} rows; give one for each row")
    return [_said(answer, into, row.id) for row, answer in zip(rows, answers, strict=True)]


def told(error: BaseException) -> str:
    """An error in a line, and below it where it was raised, from the user's function on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_HERE):
        trace = trace.tb_next
    line = f"{type(error).__name__}: {error}"[:2000]
    if trace is None:
        return line
    lines = traceback.format_exception(type(error), error, trace)
    return f"{line}\n\n{''.join(lines)[-_TRACE_LETTERS:]}"


def _said(answer: Any, into: str, row_id: str) -> Said:
    if answer is None:
        return None
    try:
        found = Result(value=answer) if isinstance(answer, Mapping) else answer
        text = result_text(found, into, row_id)
    except ValueError as error:
        return Trouble(f"ValueError: {error}")
    if len(text) > _RESULT_BYTES:
        return Trouble(
            f"the result has {len(text) >> 20} MiB; {_RESULT_BYTES >> 20} is the most, put large data in blobs"
        )
    return text, found.drop
