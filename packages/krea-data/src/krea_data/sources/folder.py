"""Pictures in a folder and the folders below it, with what lies beside them: a.txt, a.json, metadata.jsonl."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from krea_data.sources.entries import Content, Entry, Unavailable
from krea_data.sources.meta import described, sidecar
from krea_data.tasks.picture import formats

__all__ = ["FolderSource", "picture_endings"]

_BESIDE = ("txt", "caption", "json", "cls")
_LISTING = "metadata.jsonl"  # as Hugging Face's imagefolder has it: file_name and more, one object a line


def picture_endings() -> frozenset[str]:
    """The endings of files, with their dots, that are taken for pictures."""
    read = set(formats())
    known = {ending for ending, form in Image.registered_extensions().items() if form in read}
    return frozenset(known | {".svg", ".svgz", ".avif", ".eps", ".heic", ".heif"})  # the last ones to say why not


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSource:
    """The files with a picture's ending below `folder`, in order of their names; the path in it is the key.

    Hidden files and folders are passed over. A link to a folder is followed if that lies outside of `folder` (what lies
    inside comes by itself), once. `licence` and `author` count where a file's neighbours say nothing.
    """

    name: str
    folder: Path
    licence: str | None = None
    author: str | None = None
    bytes_limit: int = 256 << 20  # of one file

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder; give one that holds pictures")

    def total(self) -> None:
        """Unknown before the folder has been gone through."""
        return None

    def entries(self) -> Iterator[Entry]:
        """One entry per file; a folder that cannot be listed raises OSError."""
        endings = picture_endings()
        root = self.folder.resolve()
        seen: set[Path] = {root}
        todo = [(root, "")]
        while todo:
            folder, place = todo.pop()
            files, below = _listed(folder, place, root, seen)
            yield from self._of(files, place, endings)
            todo += reversed(below)

    def _of(self, files: list[os.DirEntry[str]], place: str, endings: frozenset[str]) -> Iterator[Entry]:
        paths = {one.name: Path(one.path) for one in files}
        listing = _listing(paths[_LISTING]) if _LISTING in paths else {}
        for name, path in paths.items():
            if path.suffix.lower() in endings:
                yield self._entry(place + name, path, paths, listing.get(name, {}))

    def _entry(self, key: str, path: Path, paths: Mapping[str, Path], listed: Mapping[str, Any]) -> Entry:
        name = os.fsencode(key).decode("utf-8", errors="backslashreplace")

        def meta() -> dict[str, Any]:
            ends = [(end, f"{stem}.{end}") for stem in (path.name, path.stem) for end in _BESIDE]
            found = [(end, _small(paths[beside])) for end, beside in ends if beside in paths]
            stated = dict(listed) | sidecar((end, data) for end, data in found if data is not None)
            return described(stated, source=self.name, licence=self.licence, author=self.author) | {"file": name}

        return Entry(key=name, meta=meta, read=lambda: Content(data=_read(path, self.bytes_limit)))


def _listed(
    folder: Path, place: str, root: Path, seen: set[Path]
) -> tuple[list[os.DirEntry[str]], list[tuple[Path, str]]]:
    """The files of a folder, and the folders below it with their places, in order of their names."""
    files: list[os.DirEntry[str]] = []
    below: list[tuple[Path, str]] = []
    with os.scandir(folder) as found:
        entries = sorted((one for one in found if not one.name.startswith(".")), key=lambda one: os.fsencode(one.name))
    for one in entries:
        try:
            is_folder = one.is_dir()
        except OSError:  # a link to itself
            is_folder = False
        if not is_folder:
            files.append(one)
        elif not one.is_symlink() or _leads_out(Path(one.path), root, seen):
            below.append((Path(one.path), f"{place}{one.name}/"))
    return files, below


def _leads_out(link: Path, root: Path, seen: set[Path]) -> bool:
    target = link.resolve()
    inside = any(target.is_relative_to(one) for one in seen)
    if inside or root.is_relative_to(target):
        return False
    seen.add(target)
    return True


def _read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file; a pipe or a device would never end."""
    try:
        found = path.stat()
    except OSError as error:
        raise Unavailable(f"it cannot be read: {error.strerror}", passing=True) from error
    if not stat.S_ISREG(found.st_mode):
        raise Unavailable("it is no file, but a pipe, a socket, a device or a folder")
    if found.st_size > limit:
        raise Unavailable(f"it has {found.st_size} bytes, which is over the limit of {limit}")
    return path.read_bytes()


def _small(path: Path) -> bytes | None:
    """The bytes of a file beside a picture, unless it cannot be read or is too large to be a description."""
    try:
        return _read(path, 4 << 20)
    except (OSError, Unavailable):
        return None


def _listing(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for line in (_small(path) or b"").decode("utf-8-sig", errors="replace").splitlines():
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(said, dict) and isinstance(said.get("file_name"), str):
            found[said.pop("file_name")] = said
    return found
