"""What a row is: an image with its origin, what tasks found out about it, and a claim on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Claim", "Dead", "Result", "Row", "Stats"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one task says of one row: a JSON value, and a reason if the row is to be dropped."""

    value: Mapping[str, Any] = field(default_factory=dict)
    drop: str | None = None  # a short stable reason such as "duplicate"; None keeps the row


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One picture of one source. Several rows may share a blob: that is an exact duplicate.

    `meta` comes from the source: source, style, concept, label, tags, licence, author, package, version.
    """

    id: str  # unique and stable, "<source>/<name>", such as "noto/1f34e"
    blob: str  # sha256 of the picture's bytes, in hex
    meta: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Result] = field(default_factory=dict)

    def kept_by(self, task: str) -> bool:
        """Whether the task has looked at this row and kept it."""
        return task in self.results and self.results[task].drop is None

    @property
    def dropped(self) -> tuple[str, str] | None:
        """(task, reason) of the first task that dropped the row, or None."""
        for task, result in self.results.items():
            if result.drop is not None:
                return task, result.drop
        return None


@dataclass(frozen=True, slots=True)
class Claim:
    """A leased row. The token fences: a result under an old token is refused. Claims compare by id and token."""

    row: Row = field(compare=False)
    token: int
    id: str
    attempt: int = field(compare=False, default=1)
    slot: int | None = field(compare=False, default=None, repr=False)  # where its table found it, if that told


@dataclass(frozen=True, kw_only=True, slots=True)
class Dead:
    """A row that a task gave up on: every attempt failed or took its worker down."""

    id: str
    error: str
    attempts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Where one task stands, in rows. A queued row waits for its turn, a leased one is being worked on."""

    done: int = 0
    kept: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)  # by reason
    queued: int = 0
    leased: int = 0
    dead: int = 0
