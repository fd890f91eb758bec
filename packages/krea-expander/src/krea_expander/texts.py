"""The package's own prompt texts: numbered sections of a text file, shipped as data."""

from functools import cache
from importlib import resources

__all__ = ["section", "version"]


def section(name: str, part: str) -> str:
    """One `[part]` of `prompts/<name>.txt`."""
    return _read(name)[1][part]


def version(name: str) -> int:
    """The version of `prompts/<name>.txt`, which changes with every change of its words."""
    return _read(name)[0]


@cache
def _read(name: str) -> tuple[int, dict[str, str]]:
    text = (resources.files("krea_expander") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    head, *blocks = text.split("\n[")
    parts = dict(block.split("]\n", 1) for block in blocks)
    return int(head.split()[1]), {part: body.strip() for part, body in parts.items()}
