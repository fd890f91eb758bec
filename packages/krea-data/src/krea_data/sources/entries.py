"""What a source is: entries in a stable order, each with a key, what is known of it, and a way to its bytes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

__all__ = ["Content", "Entry", "Source", "Unavailable", "lost"]


class Unavailable(Exception):  # noqa: N818 - a reason, not a mistake
    """Why the bytes of an entry cannot be had; `passing` if another day may bring them."""

    def __init__(self, reason: str, *, passing: bool = False, meta: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason, self.passing, self.meta = reason, passing, dict(meta or {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """The bytes of an entry, and what was learnt while they were read."""

    data: bytes
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One picture of a source. The key is a promise: the same key stands for the same picture for ever.

    `meta` and `read` are called for new entries alone, once, on any thread; they raise `Unavailable` or OSError where
    there are no bytes. `held` says how many bytes the entry keeps in memory until then.
    """

    key: str
    read: Callable[[], Content]
    meta: Callable[[], Mapping[str, Any]] = dict
    held: int = 0


class Source(Protocol):
    """Where pictures come from. Making a list of the entries is cheap; their bytes are read for new ones alone."""

    @property
    def name(self) -> str:
        """1 to 40 lower-case letters, digits, dots, dashes and underscores: the first part of the row ids."""
        ...

    def total(self) -> int | None:
        """How many entries there are, if that can be told without going through them."""
        ...

    def entries(self) -> Iterator[Entry]:
        """All entries, in an order that stays; raises ValueError if the source is not what it should be."""
        ...


def lost(key: str, reason: str, meta: Mapping[str, Any] | None = None, *, passing: bool = False) -> Entry:
    """An entry that has no bytes, for this reason."""

    def read() -> NoReturn:
        raise Unavailable(reason, passing=passing)

    return Entry(key=key, read=read, meta=lambda: dict(meta or {}))
