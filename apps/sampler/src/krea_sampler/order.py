"""What to draw: prompts, seeds and settings, checked before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "Order", "Weighted", "weighted"]

FORMAT = 1  # of the parameters in a picture; raised when an older program could misread them


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighted:
    """A file (LoRA or style picture) and how strongly it acts."""

    path: Path
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ValueError(f"no file at {self.path}; give PATH or PATH:STRENGTH")


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One call's wishes: every prompt is drawn with every seed. None leaves a setting to the model's defaults."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    guidance: float | None = None
    side_px: int | None = None
    grid: bool = False

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError('no prompt; say what to draw, such as krea-sample "a red apple, flat style"')
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError('an empty prompt; say what to draw, such as "a red apple, flat style"')
        if not self.seeds:
            raise ValueError("no seeds; ask for at least one picture (--n 1)")
        if any(not 0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"seeds {self.seeds[0]} to {self.seeds[-1]}; each must be between 0 and 2^63 - 1")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"{self.steps} steps; at least 1 is needed")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance {self.guidance}; use 0 (none) or more")
        if self.side_px is not None and self.side_px < 1:
            raise ValueError(f"a side of {self.side_px} px; it must be positive")

    @property
    def pictures(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every picture, seeds fastest."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Order":
        """The order that a picture's parameters describe; raises ValueError if they are damaged or too new."""
        if parameters.get("format") != FORMAT:
            raise ValueError(f"parameters of format {parameters.get('format')!r}; this program reads {FORMAT}")
        names = {field.name for field in fields(cls)}
        try:
            given = {name: parameters[name] for name in names}
            given["prompts"] = tuple(str(prompt) for prompt in given["prompts"])
            given["seeds"] = tuple(int(seed) for seed in given["seeds"])
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise ValueError(f"parameters without a usable {error}") from error

    def with_changes(self, *, seed: int | None, n: int | None, **settings: float | int | None) -> "Order":
        """This order with the seeds first, first + 1, ... and the settings that are not None."""
        given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        if seed is not None or n is not None:
            first = self.seeds[0] if seed is None else seed
            given["seeds"] = tuple(range(first, first + (n or 1)))
        return replace(self, **given)


def weighted(text: str, usual: float = 1.0) -> Weighted:
    """PATH or PATH:STRENGTH; a colon that is not followed by a number belongs to the path."""
    path, _, tail = text.rpartition(":")
    try:
        return Weighted(path=Path(path), strength=float(tail)) if path else Weighted(path=Path(text), strength=usual)
    except ValueError:
        return Weighted(path=Path(text), strength=usual)
