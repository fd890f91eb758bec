"""A Hugging Face dataset as `save_to_disk` left it: folders of Arrow files, read without the `datasets` package."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import pyarrow as pa
except ImportError as error:
    raise ImportError("reading saved datasets needs pyarrow; install krea-data[sources]") from error

from krea_data.sources.entries import Content, Entry, Unavailable, lost
from krea_data.sources.meta import described

__all__ = ["SavedSource"]

_BYTES_LIMIT = 256 << 20


@dataclass(frozen=True, slots=True)
class _Split:
    """A dataset of a `DatasetDict`, or the only one."""

    name: str
    files: tuple[Path, ...]
    features: Mapping[str, Any]
    licence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedSource:
    """The pictures in the columns of type Image; "<split>/<row>" is the key, with the column if there are several.

    Pictures that the dataset knows by path alone are read from below its own folder and from below `roots`. `licence`
    and `author` count where neither the row nor the dataset states any.
    """

    name: str
    folder: Path
    roots: tuple[Path, ...] = ()
    licence: str | None = None
    author: str | None = None

    def __post_init__(self) -> None:
        _splits(self.folder)

    def total(self) -> None:
        """Unknown: Arrow streams do not say how many rows they have."""
        return None

    def entries(self) -> Iterator[Entry]:
        """One entry per picture; a file that breaks off ends its split with an entry that says so."""
        for split in _splits(self.folder):
            number = 0
            for path in split.files:
                try:
                    for batch in _batches(path):
                        for row in range(batch.num_rows):
                            yield from self._of(split, batch, row, f"{split.name}/{number + row:09d}")
                        number += batch.num_rows
                except (pa.ArrowInvalid, OSError) as error:
                    said = described({}, source=self.name, licence=self.licence, author=self.author)
                    problem = f"{path.name} breaks off after row {number - 1}: {error}"[:500]
                    yield lost(
                        f"{split.name}/(broken at {number:09d})", problem, said | {"file": path.name}, passing=True
                    )
                    break  # the numbers of the rows behind it are not known

    def _of(self, split: _Split, batch: "pa.RecordBatch", row: int, key: str) -> Iterator[Entry]:
        pictures = [name for name, kind in split.features.items() if _is_image(kind) or _is_images(kind)]

        def meta() -> dict[str, Any]:
            stated = {
                name: _stated(kind, batch.column(name)[row].as_py())
                for name, kind in split.features.items()
                if name not in pictures
            }
            licence = split.licence or self.licence
            known = described(stated, source=self.name, licence=licence, author=self.author)
            return known | {"file": self.folder.name}

        for name in pictures:
            cell: Any = batch.column(name)[row]  # its bytes are read when they are asked for
            more = f".{name}" if len(pictures) > 1 else ""
            if not _is_images(split.features[name]):
                yield Entry(key=key + more, meta=meta, read=lambda cell=cell: self._content(cell))
            elif cell.is_valid:
                for place, one in enumerate(cell.values):
                    yield Entry(key=f"{key}{more}.{place}", meta=meta, read=lambda one=one: self._content(one))

    def _content(self, cell: Any) -> Content:
        said = cell.as_py()
        if said is None or (said.get("bytes") is None and not said.get("path")):
            raise Unavailable("the dataset has no picture in this row")
        if said.get("bytes") is not None:
            return Content(data=said["bytes"])
        return Content(data=self._from_path(str(said["path"])), meta={"path": str(said["path"])[:1000]})

    def _from_path(self, path: str) -> bytes:
        file = (self.folder / path).resolve()
        if not any(file.is_relative_to(root.resolve()) for root in (self.folder, *self.roots)):
            raise Unavailable(
                "its path leads out of the dataset's folder; name the folder in `roots` to allow it", passing=True
            )
        if not file.is_file():
            raise Unavailable("there is no file at its path", passing=True)
        if file.stat().st_size > _BYTES_LIMIT:
            raise Unavailable(f"it has {file.stat().st_size} bytes, which is over the limit of {_BYTES_LIMIT}")
        return file.read_bytes()


def _splits(folder: Path) -> list[_Split]:
    """The splits in the order in which the dataset names them; ValueError for a folder that holds no dataset."""
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(isinstance(one, str) and "/" not in one for one in names):
            raise ValueError(f"{folder / 'dataset_dict.json'} names no splits; save the dataset again")
        return [_split(folder / name, name) for name in names]
    if not (folder / "state.json").is_file():
        raise ValueError(f"{folder} holds no dataset; give a folder that save_to_disk wrote")
    return [_split(folder, str(_json(folder / "state.json").get("_split") or "all"))]


def _split(folder: Path, name: str) -> _Split:
    state, info = _json(folder / "state.json"), _json(folder / "dataset_info.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ValueError(f"{folder} has rows in another order than its files; load it and save it again")
    listed = state.get("_data_files", [])
    files = [str(one.get("filename") or "/") for one in listed if isinstance(one, dict)]
    if any("/" in one for one in files):
        raise ValueError(f"{folder / 'state.json'} names no data files; save the dataset again")
    features = info.get("features")
    if not isinstance(features, dict) or not any(_is_image(kind) or _is_images(kind) for kind in features.values()):
        raise ValueError(f"{folder} has no column of type Image; cast one with datasets.Image() and save it again")
    licence = info.get("license")
    return _Split(name, tuple(folder / one for one in files), features, licence if isinstance(licence, str) else "")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); save the dataset again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no object with names; save the dataset again")
    return found


def _batches(path: Path) -> Iterator["pa.RecordBatch"]:
    """The batches of an Arrow file, mapped into memory; of either of Arrow's two formats."""
    with pa.memory_map(str(path)) as mapped:
        if mapped.read(6) == b"ARROW1":
            file = pa.ipc.open_file(mapped)
            for number in range(file.num_record_batches):
                yield file.get_batch(number)
            return
        mapped.seek(0)
        yield from pa.ipc.open_stream(mapped)


def _is_image(kind: Any) -> bool:
    return isinstance(kind, dict) and kind.get("_type") == "Image"


def _is_images(kind: Any) -> bool:
    """Whether a column holds lists of pictures, as old and new versions of `datasets` write it."""
    if isinstance(kind, list):
        return len(kind) == 1 and _is_image(kind[0])
    return (
        isinstance(kind, dict)
        and kind.get("_type") in ("List", "LargeList", "Sequence")
        and _is_image(kind.get("feature"))
    )


def _stated(kind: Any, value: Any) -> Any:
    """What a cell states; for the number of a class its name."""
    if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and isinstance(value, int):
        names = kind.get("names")
        return str(names[value]) if isinstance(names, list) and 0 <= value < len(names) else None
    return value
