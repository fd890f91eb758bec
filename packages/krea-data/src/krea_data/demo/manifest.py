"""One hash per package over all its kept files, committed in `manifest.json`, so that a corpus is provably the same."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

__all__ = ["check", "digest"]


def digest(folder: Path) -> str:
    """The sha256, in hex, over the sorted names and contents of all files below a folder."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            whole.update(path.relative_to(folder).as_posix().encode() + b"\0")
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def check(spec: str, found: str) -> bool:
    """Whether this is the hash that the committed manifest has for "name@version"; ValueError if it has none."""
    manifest = json.loads(files("krea_data.demo").joinpath("manifest.json").read_text("utf-8"))
    if spec not in manifest:
        raise ValueError(f"{spec} is not in the manifest of the demo corpus; known: {', '.join(sorted(manifest))}")
    return manifest[spec] == found
