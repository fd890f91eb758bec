"""WebDataset tars: files of one name and several endings are one sample; a tar that is cut short says where."""

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from krea_data.sources.entries import Content, Entry, Unavailable, lost
from krea_data.sources.folder import picture_endings
from krea_data.sources.meta import described, sidecar

__all__ = ["WebDatasetSource", "sample_key"]

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_HIDDEN = re.compile(r"__[^/]*__($|/)|(.*/)?\._")  # what WebDataset keeps for itself, and what macOS leaves behind
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
_BESIDE = ("txt", "caption", "json", "cls")
_BESIDE_LIMIT = 4 << 20
_CUT = "the tar is cut short inside of"
_LAST = "(last)"  # stands behind the files of a sample after which a tar breaks off
_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


def sample_key(name: str) -> tuple[str, str] | None:
    """The sample of a file and its ending in lower case, as WebDataset splits names; None if it has none."""
    match = _NAME.match(name)
    return (match[1], match[2].lower()) if match else None


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a sample: its bytes if they were read along the way, else where they lie; or why there are none."""

    ending: str
    size: int
    offset: int = 0
    data: bytes | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebDatasetSource:
    """The samples of some tars (also .gz, .bz2, .xz), one after the other; "<tar>/<key>" is the key.

    A sample with several pictures is several entries, "<tar>/<key>.<ending>". The names of the tars, without folder and
    endings, have to differ.
    """

    name: str
    tars: Sequence[Path]
    licence: str | None = None
    author: str | None = None
    bytes_limit: int = 256 << 20  # of one picture

    def __post_init__(self) -> None:
        twice = [stem for stem, count in Counter(map(_stem, self.tars)).items() if count > 1]
        if not self.tars or twice:
            raise ValueError(f"{twice[0]}.tar is given twice; rename one" if twice else "give one tar or more")

    def total(self) -> None:
        """Unknown: a tar has no table of contents."""
        return None

    def entries(self) -> Iterator[Entry]:
        """The pictures of all samples, and one entry without bytes for every place where a tar breaks off."""
        endings = frozenset(ending.removeprefix(".") for ending in picture_endings())
        for path in self.tars:
            stem, used = _stem(path), Counter[str]()
            for key, members in _samples(path, self.bytes_limit):
                if key is None:
                    said = described({}, source=self.name, licence=self.licence, author=self.author)
                    yield lost(
                        f"{stem}/{members[0].ending}", members[0].problem, said | {"file": path.name}, passing=True
                    )
                    continue
                used[key] += 1
                again = f"~{used[key]}" if used[key] > 1 else ""
                yield from self._of(path, f"{stem}/{key}{again}", members, endings)

    def _of(self, path: Path, key: str, members: Sequence[_Member], endings: frozenset[str]) -> Iterator[Entry]:
        cut = next((one.problem for one in members if _CUT in one.problem), "")
        pictures = [one for one in members if one.ending.rpartition(".")[2] in endings]
        if cut or not pictures:
            problem = next((one.problem for one in members if one.problem), "")
            there = ", ".join(one.ending for one in members if one.ending != _LAST)
            why = cut or problem or f"the sample has no picture, only {there}"
            yield lost(key, why, self._meta(path, members), passing=bool(cut))
            return
        for one in pictures:
            yield Entry(
                key=key + (f".{one.ending}" if len(pictures) > 1 else ""),
                meta=lambda: self._meta(path, members),
                read=lambda one=one: Content(data=_whole(path, one)),
                held=len(one.data or b""),
            )

    def _meta(self, path: Path, members: Sequence[_Member]) -> dict[str, Any]:
        beside = [(one.ending, _bytes(path, one)) for one in members if one.ending in _BESIDE and not one.problem]
        stated = sidecar((ending, data) for ending, data in beside if data is not None)
        meta = described(stated, source=self.name, licence=self.licence, author=self.author) | {"file": path.name}
        if members[-1].ending == _LAST:
            note = "the tar breaks off right after this sample; some of its files may be missing"
            meta["notes"] = [*meta.get("notes", []), note]
        return meta


def _stem(path: Path) -> str:
    return re.sub(r"(\.tar)?(\.gz|\.bz2|\.xz)?$|\.tgz$", "", path.name)


def _whole(path: Path, member: _Member) -> bytes:
    if member.problem:
        raise Unavailable(member.problem)
    data = _bytes(path, member, limit=member.size)
    if data is None or len(data) != member.size:
        raise Unavailable("the tar is shorter now than it was when its names were read", passing=True)
    return data


def _bytes(path: Path, member: _Member, limit: int = _BESIDE_LIMIT) -> bytes | None:
    if member.data is not None or member.size > limit:
        return member.data
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def _samples(path: Path, limit: int) -> Iterator[tuple[str | None, list[_Member]]]:
    """(key, files) of every sample; the key None is of a place where the tar breaks off."""
    key, members = "", list[_Member]()
    for found, member in _members(path, limit):
        if members and found != key:
            yield key, [*members, _Member(_LAST, 0)] if found is None else members
            members = []
        if found is None:
            yield None, [member]
            continue
        key = found
        members.append(member)
    if members:
        yield key, members


def _members(path: Path, limit: int) -> Iterator[tuple[str | None, _Member]]:
    packed = _OPENERS.get(path.suffix.lower())
    try:
        file = packed(path, "rb") if packed else path.open("rb")
    except OSError as error:
        yield None, _end("(not opened)", f"the tar cannot be opened: {error.strerror or error}")
        return
    with file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it holds nothing but the file
        except _BROKEN as error:
            yield None, _end("(cut short at byte 0)", f"this is no tar, or one that is cut short at once: {error}")
            return
        yield from _walk(tar, file, limit, read=packed is not None)


def _end(place: str, problem: str) -> _Member:
    return _Member(ending=place, size=0, problem=" ".join(problem.split())[:500])


def _walk(tar: tarfile.TarFile, file: IO[bytes], limit: int, *, read: bool) -> Iterator[tuple[str | None, _Member]]:
    """The files of a tar in their order; `read` takes their bytes along, where there is no way back to them."""
    while True:
        try:
            info = tar.next()
        except _BROKEN as error:
            yield None, _cut(tar.offset, str(error))
            return
        if info is None:
            break
        tar.members = []  # type: ignore[attr-defined] # else all of them are kept
        split = sample_key(info.name)
        if not info.isfile() or split is None or _HIDDEN.match(info.name):
            continue
        member = _read(file, info, split[1], limit, read=read)
        yield split[0], member
        if _CUT in member.problem:
            return
    try:
        if file.tell() == tar.offset:
            yield None, _cut(tar.offset, "it has no mark of its end")
        elif _after(file, tar.offset, packed=read).strip(b"\0"):
            yield None, _cut(tar.offset, "what follows is no header of a file")
    except _BROKEN as error:
        yield None, _cut(tar.offset, str(error))


def _after(file: IO[bytes], offset: int, *, packed: bool) -> bytes:
    """What stands where the next header should: nothing but zeros at the end of a tar."""
    if not packed:  # there is no cheap way back in what is packed, but its end is two blocks of zeros
        file.seek(offset)
    return file.read(tarfile.BLOCKSIZE)


def _cut(offset: int, said: str) -> _Member:
    return _end(f"(cut short at byte {offset})", f"the tar is cut short or damaged at byte {offset}: {said}")


def _read(file: IO[bytes], info: tarfile.TarInfo, ending: str, limit: int, *, read: bool) -> _Member:
    if info.size > limit:
        return _Member(ending, info.size, problem=f"it has {info.size} bytes, which is over the limit of {limit}")
    try:
        file.seek(info.offset_data)
        data = file.read(info.size) if read else None
        if not read and info.size:
            file.seek(info.offset_data + info.size - 1)
            whole = len(file.read(1)) == 1
        else:
            whole = data is None or len(data) == info.size
    except _BROKEN as error:
        return _Member(ending, info.size, problem=f"{_CUT} {info.name[:200]} ({error})"[:500])
    if not whole:
        return _Member(ending, info.size, problem=f"{_CUT} {info.name[:200]}, of {info.size} bytes")
    return _Member(ending, info.size, offset=info.offset_data, data=data)
