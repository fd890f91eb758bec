"""Safetensors files: open one, or say what the file is instead; write one tensor by tensor, whole or not at all."""

import json
import math
import os
import uuid
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["DTYPES", "open_tensors", "replaced", "write_json", "write_stream"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of tensors as the header of a safetensors file names them."""

PICKLE = "a pickle (.ckpt, .pt, .bin); only safetensors are read: `save_file(torch.load(file, weights_only=True), new)`"
PICTURE = "a picture, no weights; name a .safetensors file"
BEGINNINGS = (
    (b"GGUF", "a GGUF file; take the safetensors file that it was made from"),
    (b"PK\x03\x04", PICKLE),
    *((bytes([0x80, protocol]), PICKLE) for protocol in (2, 3, 4, 5)),
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for; run `git lfs pull`"),
    (b"\x89PNG", PICTURE),
    (b"\xff\xd8\xff", PICTURE),
    (b"<", "a web page that was saved in place of the file (a login or an error?); download it again"),
    (b"{", "JSON, perhaps an answer of the server that refused the download; download it again"),
)


def open_tensors(file: Path) -> safe_open:
    """Open a safetensors file; ValueError says what the file is instead, or which tensors a truncated one lacks."""
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is {_diagnosis(file)} ({error})") from error


@contextmanager
def replaced(path: Path):
    """A temporary path in the same folder that takes the place of `path` at the end, or vanishes after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")  # of this call alone, whatever other threads write
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def write_stream(
    path: str | Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file, asking for one tensor at a time; the file appears only when it is complete.

    layout: type and shape of every tensor, known beforehand; read: name -> that tensor, on any device.
    """
    names = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))  # so that each lies aligned
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        dtype, shape = layout[name]
        if dtype not in codes:
            raise ValueError(f"{name} has type {dtype}, which safetensors cannot hold; convert it first")
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replaced(Path(path)) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = read(name)
            if (tensor.dtype, tuple(tensor.shape)) != layout[name]:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)} where {layout[name]} was announced")
            file.write(_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole or not at all."""
    with replaced(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _bytes(tensor: Tensor) -> Any:
    """The numbers of a tensor as a buffer, without a copy where it is on the CPU and contiguous."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _diagnosis(file: Path) -> str:
    size = file.stat().st_size
    if size == 0:
        return "empty; download it again"
    with file.open("rb") as stream:
        start = stream.read(64).lstrip()
        for beginning, meaning in BEGINNINGS:
            if start.startswith(beginning):
                return meaning
        if _is_text(start):
            return "a text, no weights; name a .safetensors file"
        stream.seek(0)
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if length < 100_000_000 else b""
    try:
        header = json.loads(text)
        lost = [name for name, entry in header.items() if _end(name, entry) > size - 8 - length]
    except (ValueError, TypeError, KeyError, AttributeError):
        return "truncated or not a safetensors file; download it again"
    if not lost:
        return "truncated or not a safetensors file; download it again"
    return f"truncated: {len(lost)} of its tensors are cut off, first {', '.join(lost[:3])}; download it again"


def _is_text(start: bytes) -> bool:
    try:
        text = getincrementaldecoder("utf-8")().decode(start)  # which does not mind half a letter at the end
    except UnicodeDecodeError:
        return False
    return "".join(text.split()).isprintable()


def _end(name: str, entry: Mapping[str, Any]) -> int:
    return 0 if name == "__metadata__" else int(entry["data_offsets"][1])
