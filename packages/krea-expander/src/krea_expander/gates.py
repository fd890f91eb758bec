"""Format and safety: checks that an expansion passes or fails, with the rules as data in `data/gates.toml`.

In training they gate the whole reward, since failures are too rare to learn from one by one (Krea 2 technical report,
section on the prompt expander).
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

__all__ = ["Breach", "check", "unsafe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A rule that a text breaks; `says` completes "it cannot be used: ..."."""

    kind: Literal["format", "safety"]
    rule: str
    says: str


def check(text: str, prompt: str = "") -> tuple[Breach, ...]:
    """The rules that an expansion breaks; what the user's own prompt shows already is no breach of format."""
    most, rules = _rules()
    found = [
        breach
        for breach, patterns in rules
        if _fires(patterns, text) and (breach.kind == "safety" or not _fires(patterns, prompt) or not text.strip())
    ]
    if len(text) > max(most, 2 * len(prompt)):
        says = f"it has {len(text)} characters, more than {max(most, 2 * len(prompt))}"
        found.append(Breach(kind="format", rule="length", says=says))
    return tuple(found)


def unsafe(prompt: str) -> tuple[Breach, ...]:
    """The safety rules that a prompt breaks."""
    return tuple(breach for breach in check(prompt, prompt) if breach.kind == "safety")


def _fires(patterns: tuple[re.Pattern[str], ...], text: str) -> bool:
    return all(pattern.search(text) for pattern in patterns)


@cache
def _rules() -> tuple[int, list[tuple[Breach, tuple[re.Pattern[str], ...]]]]:
    data = tomllib.loads((resources.files("krea_expander") / "data" / "gates.toml").read_text(encoding="utf-8"))
    kinds: tuple[Literal["format", "safety"], ...] = ("format", "safety")
    rules = [
        (
            Breach(kind=kind, rule=row["name"], says=row["says"]),
            tuple(re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in row["all"]),
        )
        for kind in kinds
        for row in data[kind]
    ]
    return data["most_chars"], rules
