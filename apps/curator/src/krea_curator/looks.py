"""Pages on which a person looks at a curation."""

from collections.abc import Sequence
from pathlib import Path

from krea_data.blobs import FolderBlobs
from krea_data.interfaces import Table
from krea_data.limits.distribution import distributions
from krea_data.limits.page import page
from krea_data.limits.stages import stages
from krea_data.rows import Row
from krea_data.tasks.picture import decode

from krea_curator.recipe import Recipe

__all__ = ["limits_page", "measured"]


def measured(rows: Sequence[Row]) -> list[str]:
    """The fields of results that are numbers in any row, in order."""
    found = {
        f"{task}.{name}"
        for row in rows
        for task, result in row.results.items()
        for name, value in result.value.items()
        if isinstance(value, int | float)
    }
    return sorted(found)


def limits_page(table: Table, blobs: FolderBlobs, recipe: Recipe, out: Path, fields: Sequence[str] = ()) -> list[str]:
    """Write the page of limits and return the fields on it; ValueError for one that no row has."""
    rows = list(table.scan())
    known = measured(rows)
    unknown = [field for field in fields if field not in known]
    if unknown or not known:
        there = f"there are {', '.join(known)}" if known else "nothing was measured yet; see krea-curate run"
        raise ValueError(f"no row has a number {unknown[0] if unknown else ''!r}; {there}")
    chosen = list(fields) or known
    keys = {row.id: row.blob for row in rows}
    text = page(distributions(rows, chosen), stages(recipe.stages), lambda row_id: decode(blobs.get(keys[row_id]))[0])
    part = out.with_name(f".{out.name}.part")
    part.write_text(text, "utf-8")
    part.replace(out)
    return chosen
