"""What a look over a krablet found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from psycopg import Connection

__all__ = ["Finding", "Repair"]

Repair = Callable[[Connection], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is not as it should be, on one shard or (None) between shards.

    Something broken has lost, doubled or hidden rows, or will; a warning is about what slows down or may break later.
    `repair` makes it right on its shard and can lose nothing.
    """

    level: Literal["broken", "warning"]
    rule: str
    shard: int | None
    text: str
    rows: int = 0
    repair: Repair | None = field(default=None, compare=False, repr=False)
