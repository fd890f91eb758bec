"""What an export holds, for people: a page in Markdown with its figures, and a sheet of its pictures."""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

__all__ = ["card", "sheet"]

_COLUMNS, _ROWS, _SIDE_PX = 8, 4, 96


def card(records: Sequence[Mapping[str, Any]], about: Mapping[str, Any], pictures: str) -> str:
    """The page for the records of an index; `pictures` is the name of the sheet beside it."""
    licences = Counter(str(record["meta"].get("licence") or "unknown") for record in records)
    sources = Counter(str(record["meta"].get("source") or "unknown") for record in records)
    sizes = Counter(f"{record['width']} x {record['height']}" for record in records)
    lines = [
        "# Pictures with captions",
        "",
        f"{len(records):,} pictures with captions, in {about['shards']:,} tars of one picture size each."
        " Who drew what under which licence: ATTRIBUTION.md.",
        "",
        f"![some of the pictures]({pictures})",
        "",
        *_table("licence", licences),
        *_table("source", sources),
        *_table("size in pixels", sizes),
        *_captions(records),
    ]
    if about.get("too_small"):
        lines += [f"{about['too_small']:,} pictures were too small for {about['side_px']} pixels and left out.", ""]
    lines += [
        "The order of the pictures was drawn once, from the seed "
        f"{about['seed']}; `index.jsonl` has for each its tar, the place in it, captions and origin."
        f" The export's fingerprint is `{about['fingerprint']}`.",
    ]
    return "\n".join(lines) + "\n"


def sheet(records: Sequence[Mapping[str, Any]], picture: Callable[[Mapping[str, Any]], Image.Image]) -> bytes:
    """Up to 32 of the pictures, at even distances, as one WebP."""
    count = min(len(records), _COLUMNS * _ROWS)
    chosen = [records[len(records) * n // count] for n in range(count)]
    rows = -(-count // _COLUMNS)
    whole = Image.new("RGB", (_COLUMNS * _SIDE_PX, max(1, rows) * _SIDE_PX), "white")
    for place, record in enumerate(chosen):
        small = picture(record).convert("RGB")
        small.thumbnail((_SIDE_PX - 6, _SIDE_PX - 6))
        row, column = divmod(place, _COLUMNS)
        corner = (column * _SIDE_PX + (_SIDE_PX - small.width) // 2, row * _SIDE_PX + (_SIDE_PX - small.height) // 2)
        whole.paste(small, corner)
    buffer = io.BytesIO()
    whole.save(buffer, "webp", quality=80)
    return buffer.getvalue()


def _table(name: str, counts: Counter[str], most: int = 20) -> list[str]:
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in found[most:])
    lines = [f"| {_cell(value)} | {count:,} |" for value, count in found[:most]]
    more = [f"| {len(found) - most} others | {rest:,} |"] if rest else []
    return [f"| {name} | pictures |", "|---|---|", *lines, *more, ""]


def _captions(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """For every kind of caption how many pictures have it, and how many words it has in the middle."""
    words: dict[str, list[int]] = {}
    for record in records:
        for kind, text in record["captions"].items():
            words.setdefault(kind, []).append(len(str(text).split()))
    if not words:
        return []
    lines = [f"| {_cell(kind)} | {len(found):,} | {sorted(found)[len(found) // 2]} |" for kind, found in words.items()]
    return ["| caption | pictures | words, median |", "|---|---|---|", *lines, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
