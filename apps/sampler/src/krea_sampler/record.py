"""What a picture says of itself, as JSON: read and checked before anybody believes it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["check_text", "checked", "parsed"]


def _text(value: object) -> bool:
    return type(value) is str


def _whole(value: object) -> bool:
    return type(value) is int


def _number(value: object) -> bool:
    return type(value) in (int, float)


def _object(value: object) -> bool:
    return isinstance(value, dict)


def _list(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and all(of(one) for one in value)


def _or_none(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or of(value)


KINDS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("prompts", "wishes"), _list(_text)),
    "seeds": _list(_whole),
    "guidances": _list(_number),
    **dict.fromkeys(("loras", "styles"), _list(_object)),
    **dict.fromkeys(("steps", "side_px", "width_px", "height_px", "threads"), _or_none(_whole)),
    "guidance": _or_none(_number),
    **dict.fromkeys(("preset", "dtype", "quantise"), _or_none(_text)),
    **dict.fromkeys(("model", "image", "style_module"), _or_none(_object)),
    "negative": _text,
    "grid": lambda value: type(value) is bool,
}
"""What the value of each name must be, where there is one."""


def parsed(text: str) -> dict[str, Any]:
    """The parameters in this JSON; raises ValueError where they are damaged."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("they are no JSON") from error
    if not isinstance(found, dict):
        raise ValueError("they are no JSON object")
    return checked(found)


def checked(found: dict[str, Any]) -> dict[str, Any]:
    """The same parameters; raises ValueError for the first value that cannot be what its name says."""
    for name, fits in KINDS.items():
        if name in found and not fits(found[name]):
            raise ValueError(f"{name} is {str(found[name])[:40]!r}")
    return found


def check_text(text: str) -> None:
    """Raise ValueError for a prompt that is no text: bytes of another encoding, halves of a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt {text[:40]!r} is no Unicode text; type it again") from error
