"""Checkpoints that are whole or absent: staged folder, hash of every file, manifest, atomic rename, verified on load.

A checkpoint is a folder `step-000123`: one safetensors file per part that holds tensors (`model.safetensors`, ...),
`state.json` for everything else, and `manifest.json` with the size and SHA-256 of each file and a digest of itself.
It is written as `step-000123.partial-<id>`, flushed to disk, and renamed. Nothing is ever unpickled.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from krea_train import parallel

__all__ = ["CheckpointError", "claim", "load", "newest", "prune", "save", "steps", "verify"]

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, changed, or of another model; the message names the file."""


def save(folder: Path, step: int, tree: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> Path:
    """Write `tree` (part -> nested dicts, lists, numbers, strings, tensors) and return the committed folder.

    Sharded tensors are gathered, so every rank must call this; rank 0 writes. `notes` go into the manifest.
    A verified checkpoint of the same step is left as it is.
    """
    parts = {name: split(part) for name, part in tree.items()}
    target = folder / f"step-{step:06d}"
    failure: OSError | None = None
    if parallel.rank() == 0:
        try:
            _write(target, step, parts, dict(notes or {}))
        except OSError as error:
            failure = error
    if parallel.agree(int(failure is not None)):
        raise failure or OSError(f"rank 0 could not write {target}; its message says why")
    return target


def _write(target: Path, step: int, parts: Mapping[str, tuple[dict[str, Tensor], Any]], notes: dict[str, Any]) -> None:
    if target.exists():
        try:
            verify(target)
            return
        except CheckpointError as error:
            logger.warning("%s; it is written anew", error)
            _remove(target)
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:12]}")
    partial.mkdir(parents=True)
    try:
        for name, (tensors, _) in parts.items():
            if tensors:
                save_file(_separate(tensors), partial / f"{name}.safetensors")
        (partial / STATE).write_text(json.dumps({name: rest for name, (_, rest) in parts.items()}, indent=1))
        _seal(partial, step, notes)
        partial.rename(target)
    except SafetensorError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"{target} could not be written: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(target.parent)


def _seal(partial: Path, step: int, notes: dict[str, Any]) -> None:
    """Flush every file of the folder, then write and flush the manifest."""
    files = {}
    for path in sorted(partial.iterdir()):
        _sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = {"format": FORMAT, "step": step, "torch": torch.__version__, "notes": notes, "files": files}
    manifest["digest"] = _digest(manifest)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(partial / MANIFEST)
    _sync(partial)


def verify(path: Path, *, hashes: bool = True) -> dict[str, Any]:
    """The manifest of a checkpoint after checking every file against it; `hashes=False` compares sizes only.

    Raises CheckpointError with the name of the first file that is missing or was changed.
    """
    advice = f"remove {path} to go back to the checkpoint before it"
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files = manifest["files"].items()
        whole = manifest["digest"] == _digest(manifest) and manifest["format"] == FORMAT
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read ({error}); {advice}") from error
    if not whole or path.name != f"step-{manifest['step']:06d}":
        raise CheckpointError(f"{path / MANIFEST} was changed, or is of another folder or format; {advice}")
    for name, entry in files:
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise CheckpointError(f"{file} is missing or is not {entry['bytes']} bytes long; {advice}")
        if hashes and _sha256(file) != entry["sha256"]:
            raise CheckpointError(f"{file} was changed after it was written (its SHA-256 differs); {advice}")
    return manifest


def load(path: Path, *, hashes: bool = True) -> dict[str, Any]:
    """The tree that was saved, tensors on the CPU, after `verify`; `hashes=False` right after `newest`."""
    manifest = verify(path, hashes=hashes)
    rest = json.loads((path / STATE).read_bytes())
    return {
        name: join(part, load_file(path / f"{name}.safetensors") if f"{name}.safetensors" in manifest["files"] else {})
        for name, part in rest.items()
    }


def steps(folder: Path) -> list[tuple[int, Path]]:
    """The committed checkpoints of a folder, verified or not, oldest first."""
    found = [(re.fullmatch(r"step-(\d+)", p.name), p) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(match[1]), path) for match, path in found if match)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, or None; every one that does not is named in the log."""
    for _, path in reversed(steps(folder)):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            logger.warning("%s; trying the one before", error)
    return None


def prune(folder: Path, keep: int = 2) -> None:
    """Remove all but the newest `keep` complete checkpoints; at least two are always kept."""
    if keep < 2:
        raise ValueError(f"keep {keep} checkpoints; at least 2, since the newest may turn out damaged")
    complete = 0
    for _, path in reversed(steps(folder)):
        if complete >= keep:
            _remove(path)
            continue
        with suppress(CheckpointError):
            verify(path, hashes=False)
            complete += 1


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Make the folder, refuse it when another process trains there, and clear what a killed one left unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            import fcntl  # absent on Windows, where two runs in one folder are not noticed

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            logger.info("no file locks on this system")
        except BlockingIOError as error:
            raise CheckpointError(f"{folder} is in use by another run; wait for it or choose another folder") from error
        for path in folder.glob("step-*.partial-*"):
            shutil.rmtree(path)
        yield


def split(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Nested dicts, lists, tuples and plain values -> tensors by path, and the rest as JSON that refers to them."""
    tensors: dict[str, Tensor] = {}

    def encode(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            name = path if path not in tensors else f"{path}#{len(tensors)}"
            tensors[name] = parallel.full(node.detach())
            return {"$tensor": name}
        if isinstance(node, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return {key: encode(value, f"{path}/{key}".lstrip("/")) for key, value in node.items()}
            items = [[encode(key, path), encode(value, f"{path}/{key}".lstrip("/"))] for key, value in node.items()]
            return {"$items": items}
        if isinstance(node, list | tuple):
            items = [encode(value, f"{path}/{i}".lstrip("/")) for i, value in enumerate(node)]
            return items if isinstance(node, list) else {"$tuple": items}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise ValueError(f"cannot store {type(node).__name__} at {path!r}; use tensors, numbers, strings, lists, dicts")

    return tensors, encode(tree, "")


def join(rest: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of `split`."""
    if isinstance(rest, list):
        return [join(value, tensors) for value in rest]
    if not isinstance(rest, dict):
        return rest
    if "$tensor" in rest:
        return tensors[rest["$tensor"]]
    if "$items" in rest:
        return {join(key, tensors): join(value, tensors) for key, value in rest["$items"]}
    if "$tuple" in rest:
        return tuple(join(value, tensors) for value in rest["$tuple"])
    return {key: join(value, tensors) for key, value in rest.items()}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors asks."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(pointer)
        out[name] = tensor
    return out


def _remove(path: Path) -> None:
    """Rename, then delete, so that a kill in between leaves nothing that looks like a checkpoint."""
    trash = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:12]}")
    path.rename(trash)
    shutil.rmtree(trash)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot flush a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
