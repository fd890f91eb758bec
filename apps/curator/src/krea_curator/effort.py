"""How workers go about it: rows at once, leases, and which tasks run in processes that a picture may kill."""

from dataclasses import dataclass
from typing import Any

from krea_data.runtime.limits import Limits

__all__ = ["ISOLATED", "LEASE_S", "MEMORY_MIB", "NONE", "ORDER", "TIMEOUT_S", "Effort"]

ORDER = ("licence", "decode", "flat", "complexity", "hash", "dedup", "caption")
"""The tasks in the order in which a row meets them; `dedup` looks at all rows at once, the others at one by one."""
ISOLATED = ("decode",)
"""Tasks that meet pictures nobody has looked at; a picture that `decode` could read kills no task after it."""
NONE = "none"
"""In place of a task's name: isolate none."""
LEASE_S = 30.0
"""After so long the rows of a worker that died come back; while a batch is worked on, its lease is extended."""
MEMORY_MIB = 4096
"""For an isolated task, beyond its own size; the largest picture that `decode` takes needs about half of it."""
TIMEOUT_S = 60.0
"""For a picture in an isolated task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """The flags of a run, for all its workers. ValueError for a task that is not there and for numbers that cannot be.

    `batch` has numbers of rows, for all tasks ("200") or for one ("caption=16"); the last that fits counts.
    """

    batch: tuple[str, ...] = ()
    lease_s: float = LEASE_S
    isolate: tuple[str, ...] = ISOLATED
    memory_mib: int = MEMORY_MIB
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        self._batches()
        if self.memory_mib < 16:
            raise ValueError(f"{self.memory_mib} MiB for an isolated task; use 16 or more, and rather {MEMORY_MIB}")
        if not 0.1 <= self.lease_s <= 86_400:
            raise ValueError(f"a lease of {self.lease_s:g} s; use 0.1 s to a day, and rather {LEASE_S:g} s")
        for given in self.limits.values():
            Limits(**given)

    @property
    def rows(self) -> int:
        """Rows at once of a task for which nothing else is said."""
        return self._batches().get("", Limits().batch)

    @property
    def limits(self) -> dict[str, dict[str, Any]]:
        """What is said of single tasks, as `krea_data.worker.run` takes it."""
        found: dict[str, dict[str, Any]] = {name: {"batch": rows} for name, rows in self._batches().items() if name}
        own = {"isolated": True, "memory_bytes": self.memory_mib << 20, "timeout_s": self.timeout_s}
        for name in self.isolate:
            if name != NONE:
                found[_known(name)] = found.get(name, {}) | own
        return found

    @property
    def words(self) -> list[str]:
        """The flags that say this to a worker's command line."""
        words = ["--lease", str(self.lease_s), "--memory", str(self.memory_mib), "--timeout", str(self.timeout_s)]
        for flag, values in (("--batch", self.batch), ("--isolate", self.isolate or (NONE,))):
            words += [word for value in values for word in (flag, value)]
        return words

    def _batches(self) -> dict[str, int]:
        """Rows by task, and under "" those of all others."""
        rows: dict[str, int] = {}
        for text in self.batch:
            name, equals, number = text.rpartition("=")
            if not number.isdecimal() or int(number) < 1:
                raise ValueError(f"--batch {text} is no number of rows; use one such as 200, or caption=16")
            rows[_known(name) if equals else ""] = int(number)
        return rows


def _known(name: str) -> str:
    if name not in ORDER:
        raise ValueError(f"no task {name!r}; there are {', '.join(ORDER)}")
    return name
