"""Where pictures go: a folder with safe names, or one file; decided and tried before anything is drawn."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from krea_sampler import picture

__all__ = ["Target", "previewing", "target"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A folder, and the file in it if the caller named one."""

    folder: Path
    file: Path | None = None

    def put(self, image: Image.Image, parameters: Mapping[str, Any], stem: str) -> Path:
        """Write one picture with its parameters; returns where it lies. `stem` names it where the caller did not."""
        data = picture.encode(image, parameters)
        return picture.save(data, self.folder, stem) if self.file is None else picture.save_as(data, self.file)


def target(out: Path, pictures: int) -> Target:
    """A name that ends in .png is one file, anything else a folder; raises ValueError if it cannot be used."""
    if out.suffix == "" and out.is_file():
        raise ValueError(f"{out} is a file; name a folder, or a file that ends in .png")
    if out.suffix == "" or out.is_dir():
        picture.check_writable(out)
        return Target(folder=out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"{out} ends in {out.suffix}; pictures are PNG files: name a folder or something.png")
    if pictures > 1:
        raise ValueError(f"{pictures} pictures do not fit into {out}; name a folder, or ask for one sheet with --grid")
    if out.exists():
        raise ValueError(f"{out} exists; choose another name or remove it")
    picture.check_writable(out.parent)
    return Target(folder=out.parent, file=out)


@contextmanager
def previewing(place: Target, stem: str, on_first: Callable[[Path], None]) -> Iterator[Callable[[Image.Image], None]]:
    """Gives a function that puts a picture in one file beside the output, each whole and in place of the last.

    The file is removed at the end; `on_first` is told its name once.
    """
    path: Path | None = None

    def show(image: Image.Image) -> None:
        nonlocal path
        data = picture.encode(image, {"preview": True})
        if path is None:
            path = picture.save(data, place.folder, f"{stem}-preview")
            on_first(path)
            return
        picture.replace(data, path)

    try:
        yield show
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
