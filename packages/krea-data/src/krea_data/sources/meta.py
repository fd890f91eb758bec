"""What a source says of a picture, as a row's meta: known words in known places, the rest under "stated".

Everything that comes out can be stored: control characters, halves of letters and numbers that are none are taken out,
and `meta["notes"]` says so.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from typing import Any

from krea_data.sources.licences import UNKNOWN, spdx

__all__ = ["clean", "described", "sidecar"]

_PLACES = {
    "caption": ("caption", "text", "alt", "alt_text", "description", "prompt"),
    "label": ("label", "title", "name"),
    "tags": ("tags", "keywords", "labels"),
    "licence": ("licence", "license", "license_url", "licence_url", "rights"),
    "author": ("author", "artist", "creator", "photographer", "credit", "by"),
    "url": ("url", "image_url", "source_url", "original_url"),
}
_BAD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")  # turns the text around it, in captions and in terminals
_MOST_LETTERS = 65_536  # of all that a row states
_DEEPEST = 20


def clean(text: str) -> tuple[str, int]:
    """The text without control characters, which become spaces, and how many there were; line breaks stay."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text, directions = _DIRECTION.subn("", text)
    text, bad = _BAD.subn(" ", text)
    return text.strip(), bad + directions


def described(
    stated: Mapping[str, Any], *, source: str, licence: str | None = None, author: str | None = None
) -> dict[str, Any]:
    """The meta of a row from what is stated of it; `licence` and `author` count where nothing is stated."""
    meta: dict[str, Any] = {"source": source}
    plain, count = _plain(stated)
    notes = [_line(note) for note in plain["notes"]] if isinstance(plain.get("notes"), list) else []
    if count:
        notes.append(f"{count} control characters were taken out of what was stated")
    rest = {key: value for key, value in plain.items() if key != "notes"}
    for place, names in _PLACES.items():
        key = next((key for key in rest if key.lower() in names and _says(rest[key])), None)
        if key is not None:
            meta[place] = _words(rest.pop(key)) if place == "tags" else _line(rest.pop(key))
    _state_licence(meta, licence)
    meta["author"] = meta.get("author") or author or UNKNOWN
    rest = {key: value for key, value in rest.items() if _says(value)}
    if rest and len(json.dumps(rest)) > _MOST_LETTERS:
        notes.append(f"more than {_MOST_LETTERS} letters were stated; only what has a place of its own was taken")
        rest = {}
    for place in ("caption", "label", "url"):
        if len(meta.get(place, "")) > _MOST_LETTERS:
            meta[place] = meta[place][:_MOST_LETTERS]
            notes.append(f"the {place} was cut to {_MOST_LETTERS} letters")
    return meta | ({"stated": rest} if rest else {}) | ({"notes": notes} if notes else {})


def _state_licence(meta: dict[str, Any], licence: str | None) -> None:
    said = meta.pop("licence", "") or licence or ""
    meta["licence"] = spdx(said)
    if said and said != meta["licence"]:
        meta["licence_stated"] = said[:1000]


def sidecar(parts: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """What the files beside a picture state, given as (ending, bytes): txt, caption, json, cls; others are passed over.

    A file that cannot be read is a note; the picture is as good as before.
    """
    stated: dict[str, Any] = {}
    notes: list[str] = []
    for ending, data in parts:
        text = data.decode("utf-8-sig", errors="replace")
        if "\ufffd" in text and b"\xef\xbf\xbd" not in data:
            notes.append(f"the {ending} beside the picture is not all UTF-8; what was not is shown as \ufffd")
        if ending == "json":
            said = _object(text)
            stated = said | stated if isinstance(said, dict) else stated
            notes += [f"the json beside the picture {said}"] if isinstance(said, str) else []
        elif ending == "cls":
            stated["class"] = int(text) if text.strip().isdecimal() and len(text) < 18 else text.strip()
        elif ending in ("txt", "caption") and text.strip():
            stated["caption"] = text
    return stated | ({"notes": notes} if notes else {})


def _object(text: str) -> dict[str, Any] | str:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error})"[:300]
    return found if isinstance(found, dict) else "is no object with names"


def _says(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}


def _line(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_line(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _words(value: Any) -> list[str]:
    parts = re.split(r"[,;]", value) if isinstance(value, str) else value if isinstance(value, list) else [value]
    return list(dict.fromkeys(word for part in parts if (word := _line(part).strip())))


def _plain(value: Any) -> tuple[Any, int]:
    """The value as JSON can hold it, and how many control characters were in it."""
    count = 0

    def walk(one: Any, depth: int) -> Any:
        nonlocal count
        if isinstance(one, str):
            text, bad = clean(one)
            count += bad
            return text
        if one is None or isinstance(one, bool | int):
            return one if not isinstance(one, int) or abs(one) < 2**63 else str(one)
        if isinstance(one, float):
            return one if math.isfinite(one) else None
        if depth > _DEEPEST or isinstance(one, bytes | bytearray | memoryview):
            return None
        if isinstance(one, Mapping):
            return {walk(str(key), depth + 1): walk(part, depth + 1) for key, part in one.items()}
        if isinstance(one, list | tuple | set | frozenset):
            return [walk(part, depth + 1) for part in one]
        if isinstance(one, datetime | date | time):
            return one.isoformat()
        return walk(str(one), depth + 1)

    return walk(value, 0), count
