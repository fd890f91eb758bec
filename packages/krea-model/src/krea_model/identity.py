"""One hash for a model of many gigabytes, in milliseconds: what a picture remembers of the model that drew it."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["content_hash"]

WHOLE_BYTES = 2**26  # smaller files are read whole
BLOCK_BYTES = 2**12  # of each tensor in larger ones


def content_hash(files: Iterable[tuple[str, Path]]) -> str:
    """sha256 in hex of files, each given with the name it has in the model; folders and dates do not matter.

    Of a safetensors file above 64 MB only the header (names, shapes, dtypes), the size and 4 KiB from the middle of
    every tensor are read: training changes every element of a matrix that it changes, so this tells checkpoints apart,
    but it does not find a single flipped bit. The same weights in another file layout have another hash.
    """
    digest = hashlib.sha256()
    for name, path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{name}\n{size}\n".encode())
        if path.suffix == ".safetensors" and size > WHOLE_BYTES:
            for block in _blocks(path):
                digest.update(block)
        else:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        yield header
        for name, entry in sorted(json.loads(header).items()):
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + length + max(begin, (begin + end - BLOCK_BYTES) // 2))
            yield file.read(min(BLOCK_BYTES, end - begin))
