"""PNG files that carry their own parameters, written whole or not at all and never over another file."""

import json
import os
import re
import secrets
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from krea_sampler import record

__all__ = ["check_writable", "encode", "parameters", "pixels", "replace", "save", "save_as", "stem"]

KEY = "krea"  # the text chunk that holds the parameters


def encode(image: Image.Image, parameters: Mapping[str, Any]) -> bytes:
    """PNG bytes with the parameters as JSON in a text chunk; equal input gives equal bytes."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(KEY, json.dumps(parameters, ensure_ascii=False, sort_keys=True))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def pixels(path: Path) -> Image.Image:
    """The decoded picture with its text chunks; raises ValueError for what is not a whole PNG."""
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable PNG; it may be damaged or cut off") from error


def parameters(path: Path) -> dict[str, Any]:
    """The parameters in a PNG of ours; raises ValueError for a damaged file or one without them."""
    text = pixels(path).info.get(KEY)
    if text is None:
        raise ValueError(f"{path} holds no parameters of krea-sample; only its own PNGs can be repeated")
    try:
        return record.parsed(text)
    except ValueError as error:
        raise ValueError(f"the parameters in {path} are damaged: {error}") from error


def stem(prompt: str, seed: int) -> str:
    """A file name without ending: words of the prompt, then the seed; safe on every file system."""
    plain = unicodedata.normalize("NFKC", prompt).lower()
    words = re.sub(r"[^\w]+", "-", plain).strip("-_")
    while len(words.encode()) > 80:  # file systems count bytes
        words = words[:-1]
    return f"{words.strip('-_') or 'picture'}-s{seed}"


def check_writable(folder: Path) -> None:
    """Make the folder if needed and try a file in it, so that nobody waits for a picture that cannot be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another place with --out") from error


def save(data: bytes, folder: Path, name: str) -> Path:
    """Write to folder/name.png, or name-2.png and so on if that is taken; return the path."""
    path, number = folder / f"{name}.png", 1
    while True:
        try:
            return save_as(data, path)
        except FileExistsError:
            number += 1
            path = folder / f"{name}-{number}.png"


def save_as(data: bytes, path: Path) -> Path:
    """Write exactly there; raises FileExistsError rather than replace a file, and leaves nothing half-written."""
    _write(data, path, _publish)
    return path


def replace(data: bytes, path: Path) -> None:
    """Write there, in the place of what is there, whole or not at all."""
    _write(data, path, os.replace)


def _write(data: bytes, path: Path, publish: Callable[[Path, Path], None]) -> None:
    part = path.with_name(f".krea-{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(part, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}); make room or choose another place") from error
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # unlike a rename, refuses to replace
    except FileExistsError:
        raise
    except OSError:  # file systems without hard links
        if path.exists():
            raise FileExistsError(f"{path} exists") from None
        os.replace(part, path)
