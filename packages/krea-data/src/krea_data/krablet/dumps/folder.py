"""A dump as a folder: what lies in it, and how to tell that it is whole.

manifest.json                  what was dumped and under which rules; of every file its rows, their sum and its SHA-256
<table>/slot-00007.jsonl.gz    the rows of one table in one slot, a JSON object a line; no file where there are none

The manifest is written last and names every file, so a folder without one is not a dump, and one that was changed or
lost a file afterwards is told by its sums. The sum of rows does not depend on their order and is the same when
PostgreSQL computes it (`backup.sum_of`).
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, cast

__all__ = [
    "Manifest",
    "Part",
    "SlotParts",
    "path_of",
    "read_lines",
    "read_manifest",
    "slot_parts",
    "sync_folder",
    "verify",
    "write_lines",
    "write_manifest",
    "write_whole",
]

FORMAT = 1
_BUFFER_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file: its rows and their columns, the sum of the rows' digests, and the file's own size and digest."""

    columns: tuple[str, ...]
    rows: int
    sum: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotParts:
    """The files of a slot by table, and the queues (`after` by task) that its shard had at that moment."""

    parts: dict[str, Part]
    queues: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a dump holds. `tasks` and `records` are the rows of those tables."""

    krablet: str
    bits: int
    shards: int
    migration: int
    token: int
    began_at: str
    ended_at: str
    tasks: list[dict[str, Any]]
    records: list[list[Any]]
    slots: dict[int, SlotParts] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(part.rows for slot in self.slots.values() for part in slot.parts.values())

    @property
    def name(self) -> str:
        """What tells this dump from any other."""
        return f"{self.krablet} {self.ended_at}"

    def files(self) -> Iterator[tuple[str, int, Part]]:
        """All files as table, slot, part."""
        for slot, held in sorted(self.slots.items()):
            for table, part in held.parts.items():
                yield table, slot, part


class _Hashed:
    """A file that digests what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def path_of(folder: Path, table: str, slot: int) -> Path:
    """Where the rows of a table in a slot lie."""
    return folder / table / f"slot-{slot:05d}.jsonl.gz"


def write_lines(path: Path, columns: Sequence[str], pieces: Iterable[bytes]) -> Part | None:
    """Compress lines, which may come cut anywhere, into a file; None and no file where there is no line."""
    rows = total = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw:
        hashed = _Hashed(raw)
        with gzip.GzipFile(filename="", fileobj=cast(IO[bytes], hashed), mode="wb", compresslevel=3, mtime=0) as out:
            for block in _blocks(pieces):
                lines = block.split(b"\n")[:-1]
                rows += len(lines)
                total += sum(map(_digest, lines))
                out.write(block)
        raw.flush()
        os.fsync(raw.fileno())
    if not rows:
        path.unlink()
        return None
    return Part(columns=tuple(columns), rows=rows, sum=total, bytes=hashed.bytes, sha256=hashed.digest.hexdigest())


def read_lines(folder: Path, table: str, slot: int, part: Part) -> Iterator[bytes]:
    """The file's content in blocks; ValueError where it is not what the manifest says, at the latest at its end."""
    path = path_of(folder, table, slot)
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(_BUFFER_BYTES):
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    if path.stat().st_size != part.bytes:
        raise _damaged(path, "it has changed")


def verify(folder: Path, manifest: Manifest, on_bytes: Callable[[int, int], None] = lambda done, total: None) -> None:
    """See that every file is there and as it was written; ValueError names the first that is not."""
    total, done = sum(part.bytes for _, _, part in manifest.files()), 0
    for table, slot, part in manifest.files():
        path = path_of(folder, table, slot)
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    done += len(block)
                    on_bytes(min(done, total), total)
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error
        if digest.hexdigest() != part.sha256:
            raise _damaged(path, "its content is not what was written")


def write_whole(path: Path, document: Any) -> None:
    """Write JSON so that the file is there in full or not at all, also after the power failed."""
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(document, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make the folder a dump."""
    content = asdict(manifest)
    content["slots"] = {str(slot): held for slot, held in content["slots"].items()}
    write_whole(folder / "manifest.json", {"format": FORMAT, "sha256": _sum_of(content), "content": content})


def read_manifest(folder: Path) -> Manifest:
    """What a dump holds; ValueError if the folder is no whole dump."""
    path = folder / "manifest.json"
    if not path.is_file():
        half = folder.name.endswith(".partial") or folder.with_name(folder.name + ".partial").is_dir()
        why = "it was cut off; dump again to finish it" if half else "give the folder that a dump wrote"
        raise ValueError(f"{folder} holds no manifest.json: {why}")
    try:
        document = json.loads(path.read_text("utf-8"))
        content, said = document["content"], document["sha256"]
        found = document["format"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    if found != FORMAT:
        raise ValueError(f"{folder} is a dump of format {found}, this package reads {FORMAT}; use a newer krea-data")
    if _sum_of(content) != said:
        raise _damaged(path, "its content is not what was written")
    slots = {int(slot): slot_parts(held) for slot, held in content.pop("slots").items()}
    return Manifest(**content, slots=slots)


def slot_parts(held: Mapping[str, Any]) -> SlotParts:
    """A slot's entry as JSON has it."""
    parts = {name: Part(**{**part, "columns": tuple(part["columns"])}) for name, part in held["parts"].items()}
    return SlotParts(parts=parts, queues=held["queues"])


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines in blocks of some size."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _BUFFER_BYTES:
            block, _, rest = b"".join(waiting).rpartition(b"\n")
            if block:
                yield block + b"\n"
            waiting, size = [rest], len(rest)
    if rest := b"".join(waiting):
        yield rest if rest.endswith(b"\n") else rest + b"\n"


def _digest(line: bytes) -> int:
    return int.from_bytes(hashlib.md5(line, usedforsecurity=False).digest()[:8], "big", signed=True)


def _sum_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"the dump is damaged: {path}: {why}; take another copy of it")
