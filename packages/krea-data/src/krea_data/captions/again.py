"""Rows whose question was lost for a reason that may pass: they fail alone, and nobody else is asked twice.

A task answers a batch or raises, and after it has raised, the worker halves the batch until the row at fault is alone.
`Held` keeps the answers meanwhile, so that a model gets each question of the batch once.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Held", "LostError"]


class LostError(RuntimeError):
    """There is no answer to a row's question, for a reason that may pass; the table gives it another attempt."""


class _Outcome(Protocol):
    @property
    def failed(self) -> str | None: ...
    @property
    def error(self) -> str: ...
    @property
    def again(self) -> bool: ...


T = TypeVar("T", bound=_Outcome)


class Held(Generic[T]):
    """Outcomes of the batch that each thread has in hand, by row."""

    def __init__(self) -> None:
        self._held: dict[int, dict[Hashable, T]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_held": {}}

    def settle(self, keys: Sequence[Hashable], ask: Callable[[list[int]], Sequence[T]], *, keep_lost: bool) -> list[T]:
        """Outcomes in the order of `keys`; `ask` is told the places of those that are not known yet.

        LostError where one may be answered another time, unless these are to be kept too. A batch with an unknown row
        is a new one: what was held of others is let go.
        """
        mine = self._held.setdefault(threading.get_ident(), {})
        if not all(key in mine for key in keys):
            mine.clear()
            mine.update(zip(keys, ask(list(range(len(keys)))), strict=True))
        lost = [key for key in keys if mine[key].again]
        if lost and not keep_lost:
            if len(keys) > 1:
                raise LostError(f"{len(lost)} of {len(keys)} rows have no answer; they will be tried by themselves")
            one = mine.pop(keys[0])
            raise LostError(f"{one.failed}: {one.error}")
        return [mine.pop(key) for key in keys]
