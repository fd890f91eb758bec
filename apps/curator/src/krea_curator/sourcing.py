"""Which source lies at a place that somebody names: a corpus, a folder, tars, a list of URLs, a saved dataset."""

import re
from collections.abc import Sequence
from pathlib import Path

from krea_data.sources import FolderSource, Source, WebDatasetSource

__all__ = ["source_at"]

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def source_at(places: Sequence[Path], name: str | None, licence: str | None, author: str | None) -> Source | None:
    """The source at these places, or None for the folder of a corpus; ValueError where nothing fits.

    Tars and Parquet files may be many, or a folder of nothing else; a folder saved by Hugging Face's datasets holds
    dataset_info.json or dataset_dict.json. `licence` and `author` count where a picture says nothing.
    """
    missing = [place for place in places if not place.exists()]
    if missing:
        raise ValueError(f"{missing[0]} is not there")
    first = places[0]
    called = name or _name(first)
    if len(places) == 1 and first.is_dir():
        return _folder(first, called, licence, author)
    if all(str(place).endswith(_TARS) for place in places):
        return WebDatasetSource(name=called, tars=places, licence=licence, author=author)
    if all(place.suffix == ".parquet" for place in places):
        from krea_data.sources.urls import UrlSource

        return UrlSource(name=called, files=places, licence=licence, author=author)
    raise ValueError(f"{first} is no folder, tar or Parquet file; give one folder, or files of one of these kinds")


def _folder(folder: Path, name: str, licence: str | None, author: str | None) -> Source | None:
    if (folder / "rows.jsonl").is_file():
        return None
    if any((folder / sign).is_file() for sign in ("dataset_info.json", "dataset_dict.json")):
        from krea_data.sources.saved import SavedSource

        return SavedSource(name=name, folder=folder, licence=licence, author=author)
    files = sorted(one for one in folder.iterdir() if one.is_file() and not one.name.startswith("."))
    for endings in (_TARS, (".parquet",)):
        chosen = [one for one in files if one.name.endswith(endings)]
        if chosen and all(one in chosen or one.suffix in {".json", ".md", ".txt"} for one in files):
            return source_at(chosen, name, licence, author)
    return FolderSource(name=name, folder=folder, licence=licence, author=author)


def _name(place: Path) -> str:
    """A name for the source from its place: what the ids of its rows begin with."""
    name = re.sub(r"[^a-z0-9._-]+", "-", place.resolve().name.split(".")[0].lower()).strip("-._")[:40]
    if not name:
        raise ValueError(f"no name for a source follows from {place}; give one by --name")
    return name
