"""A row's place in a queue in memory, and how many rows may be claimed together with one that takes workers down."""

from dataclasses import dataclass

__all__ = ["Entry", "allowance"]


def allowance(limit: int, crashes: int, last: bool) -> int:
    """How many rows may share a claim with a row that took down `crashes` workers: it ends up alone.

    So a row that kills its worker dies by itself, and the rows that were claimed with it do not die of it.
    """
    if not crashes:
        return limit
    return 1 if last else max(1, limit >> min(3 * crashes, 60))


@dataclass(slots=True)
class Entry:
    """A row's place in a task's queue."""

    order: int
    due_at: float = float("-inf")
    held_until: float = float("-inf")
    attempts: int = 0
    crashes: int = 0
    priority: int = 0
    token: int | None = None
    worker: str = ""
    error: str = ""
