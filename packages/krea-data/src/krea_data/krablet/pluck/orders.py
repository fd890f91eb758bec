"""What a worker is told, and by which names its environment tells it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

__all__ = ["CANNOT", "DSNS", "Orders"]

DSNS = "KRABLET_DSNS"
"""The environment variable with the DSNs of all shards, one a line."""
CANNOT = 3
"""The exit code of a worker that cannot take part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Orders:
    """Which map, where it is, and the worker's own name."""

    name: str
    dsns: Sequence[str]
    worker: str
    key_file: str | None = None
    path: Sequence[str] = ()  # where the caller imports from

    @property
    def line(self) -> str:
        """As it goes over standard input."""
        return json.dumps(asdict(self))
