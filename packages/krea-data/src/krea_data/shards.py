"""Kept rows as shards to train from: shuffled once, one picture size per shard, in tars that WebDataset reads.

For a stage of training pictures can be brought to its sizes here, once, instead of in every epoch (`fitting`).

The folder appears when it is whole. An export that was interrupted goes on after its last whole shard, and the same
rows, settings and pictures give the same bytes.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from krea_data.card import card, sheet
from krea_data.fitting import Size, fitted, nearest, sizes
from krea_data.interfaces import Blobs
from krea_data.rows import Row
from krea_data.tasks.caption import captions
from krea_data.tasks.picture import decode

__all__ = ["INDEX", "Settings", "export", "index"]

INDEX = "index.jsonl"
_ABOUT = "about.json"
_SHEET = "pictures.webp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How an export is cut: the seed of its order, and how many pictures a shard has at most.

    With `side_px` pictures are brought to sizes of about that many pixels squared, multiples of `step_px`, and smaller
    ones are left out; they are WebP of `quality` then.
    """

    seed: int = 0
    per_shard: int = 1000
    side_px: int | None = None
    step_px: int = 16
    quality: int = 95

    def __post_init__(self) -> None:
        if self.per_shard < 1 or self.seed < 0:
            raise ValueError(f"per_shard {self.per_shard} must be at least 1 and seed {self.seed} not negative")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality {self.quality} must be from 1 to 100; 95 is hard to tell from the picture")
        if self.side_px is not None:
            sizes(self.side_px, step_px=self.step_px)


def _record(row: Row) -> dict[str, Any]:
    size = row.results["decode"].value
    return {
        "id": row.id,
        "blob": row.blob,
        "format": str(size["format"]).lower(),
        "width": size["width"],
        "height": size["height"],
        "captions": captions(row),
        "meta": dict(row.meta),
    }


def _sized(record: dict[str, Any], known: Sequence[Size]) -> dict[str, Any] | None:
    """The record of the picture at its size for the stage, or None if it is too small."""
    size = nearest(known, record["width"], record["height"])
    if size is None:
        return None
    taken = {"from": [record["width"], record["height"]], "format": "webp"}
    return record | taken | {"width": size.width, "height": size.height}


def _plan(rows: Iterable[Row], settings: Settings) -> list[tuple[str, list[dict[str, Any]]]]:
    """The shards with their records in order; it depends on the rows and the seed, not on the order of the rows."""
    known = [] if settings.side_px is None else sizes(settings.side_px, step_px=settings.step_px)
    by_size: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.id):
        missing = [task for task in ("decode", "caption") if not row.kept_by(task)]
        if missing:
            raise ValueError(f"row {row.id} was not kept by {' and '.join(missing)}; export only rows that these keep")
        record = _sized(_record(row), known) if known else _record(row)
        if record is not None:
            by_size[record["width"], record["height"]].append(record)
    plan: list[tuple[str, list[dict[str, Any]]]] = []
    for (width, height), records in sorted(by_size.items()):
        order = np.random.default_rng([settings.seed, width, height]).permutation(len(records)).tolist()
        for number, start in enumerate(range(0, len(order), settings.per_shard)):
            part = [records[place] for place in order[start : start + settings.per_shard]]
            plan.append((f"{width}x{height}-{number:05d}.tar", part))
    return plan


def _fingerprint(plan: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], settings: Settings) -> str:
    text = json.dumps(plan, ensure_ascii=False, sort_keys=True)
    made = "" if settings.side_px is None else f" webp {settings.quality}"
    return hashlib.sha256((text + made).encode()).hexdigest()


def _member(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file and return where its bytes start."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    archive.addfile(info, io.BytesIO(data))
    return archive.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _picture(record: Mapping[str, Any], data: bytes, quality: int) -> bytes:
    """The bytes to be written: those of the blob, unless the record says another size."""
    if "from" not in record:
        return data
    buffer = io.BytesIO()
    fitted(decode(data)[0], Size(record["width"], record["height"])).save(buffer, "webp", quality=quality)
    return buffer.getvalue()


def _write_shard(path: Path, records: Sequence[Mapping[str, Any]], blobs: Blobs, quality: int) -> None:
    """A tar and, beside it, its part of the index; the tar is renamed last, so where it is, both are whole."""
    lines: list[str] = []
    temporary = path.with_suffix(".new")
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, record in enumerate(records):
            data = _picture(record, blobs.get(record["blob"]), quality)
            described = {key: record[key] for key in ("id", "captions", "meta")}
            offset = _member(archive, f"{number:06d}.{record['format']}", data)
            _member(archive, f"{number:06d}.json", json.dumps(described, ensure_ascii=False).encode())
            place = {"shard": path.name, "offset": offset, "bytes": len(data)}
            lines.append(json.dumps({**record, **place}, ensure_ascii=False) + "\n")
    path.with_suffix(".jsonl").write_text("".join(lines), "utf-8")
    os.replace(temporary, path)


def _attribution(plan: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Who drew what under which licence, in Markdown; the index has the same for each picture."""
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    for _, records in plan:
        for record in records:
            stated = (str(record["meta"].get(key) or "unknown") for key in ("licence", "author", "package", "version"))
            counts[tuple(stated)] += 1
    rows = [f"| {' | '.join(who)} | {count} |" for who, count in sorted(counts.items())]
    head = ["# Attribution", "", "| licence | author | package | version | pictures |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def export(
    rows: Iterable[Row],
    blobs: Blobs,
    out: Path,
    settings: Settings = Settings(),
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write `out`: tars, index.jsonl, ATTRIBUTION.md, a card and about.json; return it. One writer at a time.

    Where `out` holds this very export nothing is done; ValueError if it holds something else.
    """
    out, rows = Path(out), list(rows)
    plan = _plan(rows, settings)
    if rows and not plan:
        raise ValueError(f"all {len(rows)} pictures are smaller than the sizes of {settings.side_px} px; lower that")
    mark = _fingerprint(plan, settings)
    if out.exists():
        about = out / _ABOUT
        if about.is_file() and json.loads(about.read_text("utf-8")).get("fingerprint") == mark:
            return out
        raise ValueError(f"{out} holds something else than this export; choose another folder or remove it")
    work = out.with_name(f".{out.name}.{mark[:12]}.new")
    work.mkdir(parents=True, exist_ok=True)
    for done, (name, records) in enumerate(plan):
        on_progress(done, len(plan))
        if not ((work / name).is_file() and (work / name).with_suffix(".jsonl").is_file()):
            _write_shard(work / name, records, blobs, settings.quality)
    parts = [work / Path(name).with_suffix(".jsonl") for name, _ in plan]
    (work / INDEX).write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    pictures = sum(len(records) for _, records in plan)
    about = {"fingerprint": mark, "pictures": pictures, "shards": len(plan), "seed": settings.seed}
    if settings.side_px is not None:
        about |= {"side_px": settings.side_px, "too_small": len(rows) - pictures}
    (work / "ATTRIBUTION.md").write_text(_attribution(plan), "utf-8")
    _write_card(work, about)
    (work / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    os.replace(work, out)
    for stray in out.parent.glob(f".{out.name}.*.new"):  # of exports that were given up
        shutil.rmtree(stray, ignore_errors=True)
    on_progress(len(plan), len(plan))
    return out


def _write_card(work: Path, about: Mapping[str, Any]) -> None:
    """What people look at, from what is written already."""
    records = index(work)

    def picture(record: Mapping[str, Any]) -> Image.Image:
        with (work / record["shard"]).open("rb") as file:
            file.seek(record["offset"])
            return decode(file.read(record["bytes"]))[0]

    (work / "README.md").write_text(card(records, about, _SHEET), "utf-8")
    (work / _SHEET).write_bytes(sheet(records, picture))


def index(folder: Path) -> list[dict[str, Any]]:
    """The records of an export in the order of its shards: id, captions, meta, shard, offset, bytes, size."""
    try:
        lines = (Path(folder) / INDEX).read_text("utf-8").splitlines()
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no finished export: it has no {INDEX}; export to it first") from error
    return [json.loads(line) for line in lines]
