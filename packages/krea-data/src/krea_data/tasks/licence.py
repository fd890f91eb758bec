"""Only pictures whose licence allows training and passing them on; everything else is dropped, and says so."""

from collections.abc import Sequence
from dataclasses import dataclass

from krea_data.rows import Result, Row

__all__ = ["PERMISSIVE", "Licence"]

PERMISSIVE = (
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "LicenseRef-PublicDomain",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """Drops "licence" for rows whose `meta["licence"]` (SPDX) is not in the list; nothing stated counts as unknown.

    Rows whose bytes could not be had stay, for `decode` to say so.
    """

    allowed: tuple[str, ...] = PERMISSIVE
    name: str = "licence"
    after: tuple[str, ...] = ()

    def __call__(self, rows: Sequence[Row]) -> list[Result]:
        """One result per row."""
        return [self._result(row) for row in rows]

    def _result(self, row: Row) -> Result:
        stated = str(row.meta.get("licence") or "unknown")
        fine = stated in self.allowed or bool(row.meta.get("problem"))
        return Result(value={"licence": stated}, drop=None if fine else "licence")
