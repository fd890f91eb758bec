"""Join the files of an emoji package with emojibase's labels by code point: which picture is which concept."""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krea_data.demo.packages import PictureSet

__all__ = ["Concept", "Drawing", "codepoints", "concepts", "drawings", "slug"]

_TONES = frozenset(f"1f3f{digit}" for digit in "bcdef")
_SELECTOR = "fe0f"


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """One emoji as emojibase describes it; `since` is the Emoji version that brought it (0.6: the oldest)."""

    hexcode: str  # normalised
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    order: int
    since: float
    labels: dict[str, str]  # per further locale


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A picture before it is drawn: either SVG text or a file; `meta` is what its row will say of it."""

    id: str
    meta: dict[str, Any]
    extent: float = 1.0
    svg: str | None = None
    path: Path | None = None


def codepoints(name: str) -> str:
    """A code point sequence in one form: lower-case hex, dashes, no padding zeros, no variation selector FE0F."""
    parts = [part.lstrip("0") for part in re.split(r"[-_ ]", name.lower())]
    return "-".join(part for part in parts if part and part != _SELECTOR)


def slug(label: str) -> str:
    """A label as iconify spells it in icon names: "woman's boot" is "womans-boot"."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['.()]", "", plain.replace("&", "and"))).strip("-")


def _toned(hexcode: str) -> bool:
    return not _TONES.isdisjoint(hexcode.split("-"))


def _table(folder: Path, locale: str) -> list[dict[str, Any]]:
    return json.loads((folder / locale / "data.json").read_text("utf-8"))


def concepts(folder: Path, locales: Sequence[str] = ()) -> dict[str, Concept]:
    """Every emoji by normalised code points, in emojibase's order, without regional letters and skin tones."""
    names = json.loads((folder / "meta" / "groups.json").read_text("utf-8"))
    further = {locale: {codepoints(e["hexcode"]): e["label"] for e in _table(folder, locale)} for locale in locales}
    found: dict[str, Concept] = {}
    for entry in sorted((e for e in _table(folder, "en") if "group" in e), key=lambda e: e["order"]):
        group = names["groups"][str(entry["group"])]
        hexcode = codepoints(entry["hexcode"])
        if group == "component":
            continue
        found[hexcode] = Concept(
            hexcode=hexcode,
            label=entry["label"],
            tags=tuple(entry.get("tags", ())),
            group=group,
            subgroup=names["subgroups"][str(entry["subgroup"])],
            order=entry["order"],
            since=float(entry["version"]),
            labels={locale: table[hexcode] for locale, table in further.items() if hexcode in table},
        )
    return found


def _meta(concept: Concept, source: PictureSet) -> dict[str, Any]:
    assert source.package is not None
    meta: dict[str, Any] = {
        "source": source.name,
        "style": source.style,
        "concept": concept.label,
        "label": concept.label,
        "group": concept.group,
        "subgroup": concept.subgroup,
        "tags": list(concept.tags),
        "licence": source.licence,
        "author": source.author,
        "package": source.package.name,
        "version": source.package.version,
        "hexcode": concept.hexcode,
        "order": concept.order,
        "since": concept.since,
    }
    if concept.labels:
        meta["labels"] = concept.labels
    return meta


def _svg(icon: dict[str, Any], canvas: dict[str, Any]) -> str:
    box = [icon.get(key, canvas.get(key, default)) for key, default in _BOX]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(str(value) for value in box)}">{icon["body"]}</svg>'
    )


_BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))


def _iconify(folder: Path, wanted: dict[str, Concept]) -> Iterator[tuple[str, str]]:
    icons = json.loads((folder / "icons.json").read_text("utf-8"))
    names: dict[str, str] = {}
    for name, icon in json.loads((folder / "chars.json").read_text("utf-8")).items():
        names.setdefault(codepoints(name), icon)
    for hexcode, concept in wanted.items():  # not every set lists all its code points
        icon = icons["icons"].get(names.get(hexcode, "")) or icons["icons"].get(slug(concept.label))
        if icon and not icon.get("hidden"):
            yield hexcode, _svg(icon, icons)


def _files(folder: Path, pattern: str) -> dict[str, Path]:
    return {codepoints(path.stem): path for path in sorted(folder.glob(pattern)) if not _toned(codepoints(path.stem))}


def drawings(source: PictureSet, folder: Path, wanted: dict[str, Concept]) -> Iterator[Drawing]:
    """The pictures of one emoji set for these concepts, in their order; one per concept that the set has."""
    if source.layout == "iconify":
        for hexcode, svg in _iconify(folder, wanted):
            meta = _meta(wanted[hexcode], source)
            yield Drawing(id=f"{source.name}/{hexcode}", meta=meta, extent=source.extent, svg=svg)
        return
    authors: dict[str, str] = {}
    if source.layout == "openmoji":
        table = json.loads((folder / "data" / "openmoji.json").read_text("utf-8"))
        authors = {codepoints(entry["hexcode"]): entry["openmoji_author"] for entry in table}
    files = _files(folder, "color/svg/*.svg" if source.layout == "openmoji" else "assets/*.webp")
    for hexcode, concept in wanted.items():
        if hexcode not in files:
            continue
        meta = _meta(concept, source)
        meta["author"] = authors.get(hexcode) or source.author
        yield Drawing(id=f"{source.name}/{hexcode}", meta=meta, extent=source.extent, path=files[hexcode])
