"""Content-addressed bytes in a folder: the key of a blob is its sha256, so writing twice is harmless."""

import hashlib
import os
import re
import tempfile
from pathlib import Path

__all__ = ["FolderBlobs"]

_KEY = re.compile(r"[0-9a-f]{64}")


class FolderBlobs:
    """Blobs as files `<folder>/<first two hex digits>/<sha256>`, written under a temporary name and renamed.

    A file that is there is whole. `get` raises KeyError for a blob that is not there, OSError if it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where the blob of this key lies or would lie; ValueError if the key is no sha256 in hex."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a blob key; a key is a sha256 as 64 lower-case hex digits")
        return self.folder / key[:2] / key

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def get(self, key: str) -> bytes:
        """The bytes of a blob."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            raise KeyError(key) from None

    def put(self, data: bytes) -> str:
        """Store and return the key; safe among processes, and a no-op if the blob is there."""
        key = hashlib.sha256(data).hexdigest()
        path = self.path(key)
        if path.is_file():
            return key
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return key
