"""One figure of a check, and the two files in which all of them are kept."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Row", "report", "write"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure; `limit` (at most) or `least` (at least) turns it into a check."""

    name: str
    value: float | None
    unit: str = ""
    limit: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether a bound is broken; a value that is no number breaks any."""
        if self.value is None:
            return False
        above = self.limit is not None and not self.value <= self.limit
        return above or (self.least is not None and not self.value >= self.least)


def report(found: dict[str, str], rows: Sequence[Row]) -> str:
    """The summary as Markdown."""
    lines = ["# GPU check", "", *(f"- {key}: {value}" for key, value in found.items()), ""]
    lines += ["| what | value | bound | |", "|---|---|---|---|"]
    for row in rows:
        value = "" if row.value is None else f"{row.value:.3g} {row.unit}".strip()
        bound = "" if row.limit is None else f"<= {row.limit:g}"
        bound = bound if row.least is None else f">= {row.least:g}"
        lines.append(f"| {row.name} | {value} | {bound} | {'FAILED' if row.failed else row.note} |")
    return "\n".join(lines) + "\n"


def write(folder: Path, found: dict[str, str], rows: Sequence[Row]) -> None:
    """Write `gpu.json` and `gpu.md`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"environment": found, "rows": [asdict(row) | {"failed": row.failed} for row in rows]}
    for name, text in (("gpu.json", json.dumps(data, indent=2) + "\n"), ("gpu.md", report(found, rows))):
        (folder / f"{name}.part").write_text(text)
        os.replace(folder / f"{name}.part", folder / name)
