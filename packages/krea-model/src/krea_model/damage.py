"""What is wrong with a folder's files, in one ValueError: JSON that is none, and the many errors of libraries."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["damage_named", "lacks_memory", "read_object"]


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; ValueError if the file holds anything else."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged (it holds {type(found).__name__}, no object); download it again")
    return found


@contextmanager
def damage_named(place: Path, part: str) -> Iterator[None]:
    """Any error of a library that reads a damaged or contradictory folder, as one ValueError that names the part."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ImportError) or lacks_memory(error):
            raise
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"the {part} in {place} is damaged or not whole ({said}); download it again") from error


def lacks_memory(error: BaseException) -> bool:
    """Whether an error is one of the many that say that memory is used up."""
    text = str(error).lower()
    if isinstance(error, OSError):  # of a file that is mapped; not every library gives the number
        return error.errno == errno.ENOMEM or "cannot allocate memory" in text
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("allocate" in text or "alloc_failed" in text)
    )
