"""The task of the index: every row that has a hash is compared, and what it is linked to is written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from krea_data.dedup.index import Index
from krea_data.rows import Result, Row

__all__ = ["Link"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """Keeps every row; "links" counts the others within the widest limits that were there when it came.

    What goes is decided by `repair`, once a while or when the queue is empty. A row whose worker dies comes again.
    """

    index: Index
    name: str = "link"
    after: tuple[str, ...] = ("hash",)
    columns: Mapping[str, type] = field(default_factory=lambda: {"links": int})
    reads: tuple[str, ...] = ("decode", "hash")

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row; a row without a hash raises ValueError."""
        return [Result(value={"links": links}) for links in self.index.take(rows)]
