"""What there is to decide, as shelves of rows: what was dropped and why, what stands next to a limit, what is kept."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from krea_data.limits.distribution import distributions
from krea_data.limits.stages import Stage
from krea_data.rows import Row

__all__ = ["Shelf", "shelves", "shown"]

_BORDER = 200  # rows on each side of a limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """Rows that have one question in common: `ids` in the order in which to look at them."""

    name: str
    title: str
    ids: tuple[str, ...]


def shelves(rows: Sequence[Row], stages: Sequence[Stage], last: str) -> list[Shelf]:
    """All shelves that are not empty. `last` is the task that has kept a row when all have."""
    dropped: dict[tuple[str, str], list[str]] = defaultdict(list)
    changed: list[str] = []
    for row in rows:
        if reviewed(row) is not None:
            changed.append(row.id)
        elif row.dropped is not None:
            dropped[row.dropped].append(row.id)
    found = [
        Shelf(name=f"dropped {task} {why}", title=f"{why} ({task})", ids=tuple(ids))
        for (task, why), ids in sorted(dropped.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    kept = [row for row in rows if row.dropped is None and row.kept_by(last)]
    found += _borders(kept, stages)
    found.append(Shelf(name="kept", title="kept by all tasks", ids=tuple(row.id for row in kept)))
    found.append(Shelf(name="decided", title="decided by a person", ids=tuple(changed)))
    return [shelf for shelf in found if shelf.ids]


def _borders(rows: Sequence[Row], stages: Sequence[Stage]) -> list[Shelf]:
    limits = [(stage.name, limit) for stage in stages for limit in stage.limits]
    spread = {one.field: one for one in distributions(rows, [limit.field for _, limit in limits])}
    found: list[Shelf] = []
    for name, limit in limits:
        for around in spread[limit.field].around(limit, _BORDER):
            # From both sides in turn: the nearest come first.
            pairs = [one for n in range(_BORDER) for side in (around.outside, around.inside) for one in side[n : n + 1]]
            title = f"next to {limit.field} = {around.bound:g} ({name})"
            found.append(Shelf(name=f"border {name} {limit.field} {around.bound:g}", title=title, ids=tuple(pairs)))
    return found


def reviewed(row: Row) -> dict[str, Any] | None:
    """What a person decided about the row, or None."""
    for result in row.results.values():
        said = result.value.get("review")
        if isinstance(said, dict):
            return said
    return None


def shown(row: Row) -> dict[str, Any]:
    """What the page shows of a row."""
    texts = row.results["caption"].value if "caption" in row.results else {}
    captions = {name: text.get("text", "") for name, text in texts.items() if isinstance(text, dict) and "text" in text}
    numbers = {
        f"{task}.{name}": value
        for task, result in row.results.items()
        for name, value in result.value.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    dedup = row.results.get("dedup")
    return {
        "id": row.id,
        "blob": row.blob,
        "about": {key: str(row.meta[key]) for key in ("label", "author", "licence", "source") if row.meta.get(key)},
        "dropped": list(row.dropped) if row.dropped is not None else None,
        "beside": str(dedup.value["kept"]) if dedup is not None and dedup.value.get("kept") else None,
        "captions": captions,
        "numbers": numbers,
        "review": reviewed(row),
    }
