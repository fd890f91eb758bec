"""What to draw: prompts, seeds and settings, checked before anything is loaded."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from krea_sampler.record import check_text, checked

__all__ = ["FORMAT", "MAX_GUIDANCE", "MAX_SIDE_PX", "MAX_STEPS", "Order", "Weighted", "parsed_size", "weighted"]

FORMAT = 2  # of the parameters in a picture; raised when an older program could misread them
MAX_SEEDS = 10_000  # of one order
MAX_STEPS = 1000  # the grid of the training's times; far fewer look the same
MAX_GUIDANCE = 100.0  # far above what still gives a picture
MAX_SIDE_PX = 8192
MAX_TOKENS = (MAX_SIDE_PX // 16) ** 2  # of a picture; a token of the released model is 16 x 16 px
FIRST = ("prompts", "seeds", "steps", "guidance", "side_px", "grid")  # all that format 1 had


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighted:
    """A file (LoRA, style picture, picture to start from) and how strongly it acts."""

    path: Path
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ValueError(f"no file at {self.path}; give PATH or PATH:STRENGTH")
        if not math.isfinite(self.strength):
            raise ValueError(f"strength {self.strength} of {self.path}; use a number, such as 0.8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One call's wishes: every prompt is drawn with every guidance and seed. None leaves a setting to the model.

    guidance: of all pictures; guidances: several, each for a row of its own.
    side_px: of square pictures; width_px and height_px: of any others. negative: what guidance leads away from.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    guidance: float | None = None
    guidances: tuple[float, ...] = ()
    side_px: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    negative: str = ""
    grid: bool = False

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError('no prompt; say what to draw, such as krea-sample "a red apple, flat style"')
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError('an empty prompt; say what to draw, such as "a red apple, flat style"')
        for text in (*self.prompts, self.negative):
            check_text(text)
        self._check_numbers()
        if self.guidances and self.guidance is not None:
            raise ValueError(f"guidance {self.guidance} and {self.guidances}; give one or several, not both")
        if self.side_px is not None and (self.width_px, self.height_px) != (None, None):
            raise ValueError("a side, and a width or height as well; give the side of a square, or width and height")

    def _check_numbers(self) -> None:
        if not self.seeds:
            raise ValueError("no seeds; ask for at least one picture (--n 1)")
        if any(not 0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"seeds {self.seeds[0]} to {self.seeds[-1]}; each must be between 0 and 2^63 - 1")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"{self.steps} steps; use a whole number from 1 to {MAX_STEPS}")
        for guidance in (*self.guidances, *(() if self.guidance is None else (self.guidance,))):
            if not 0 <= guidance <= MAX_GUIDANCE:
                raise ValueError(f"guidance {guidance}; use a number from 0 (none) to {MAX_GUIDANCE:g}")
        for side in (self.side_px, self.width_px, self.height_px):
            if side is not None:
                check_side(side)

    @property
    def pictures(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every picture of one guidance, seeds fastest."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @property
    def singles(self) -> list["Order"]:
        """An order for every picture: seeds fastest, then guidances, then prompts."""
        return [
            replace(self, prompts=(prompt,), seeds=(seed,), guidance=guidance, guidances=(), grid=False)
            for prompt in self.prompts
            for guidance in (self.guidances or (self.guidance,))
            for seed in self.seeds
        ]

    def sized(self, width_px: int, height_px: int) -> "Order":
        """This order with a size, as a side where it is a square: one spelling of each size."""
        if width_px == height_px:
            return replace(self, side_px=width_px, width_px=None, height_px=None)
        return replace(self, side_px=None, width_px=width_px, height_px=height_px)

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Order":
        """The order that a picture's parameters describe; raises ValueError if they are damaged or too new."""
        found = parameters.get("format")
        if found not in (1, FORMAT) or isinstance(found, bool):
            raise ValueError(f"parameters of format {found!r}; this program reads 1 to {FORMAT}")
        names = FIRST if found == 1 else [field.name for field in fields(cls)]
        try:
            found = checked(dict(parameters))
            given = {name: found[name] for name in names}
            given["prompts"], given["seeds"] = tuple(given["prompts"]), tuple(given["seeds"])
            given["guidances"] = tuple(float(guidance) for guidance in given.get("guidances", ()))
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise ValueError(f"parameters without a usable {error}") from error

    def with_changes(self, *, seed: int | None = None, n: int | None = None, **settings: Any) -> "Order":
        """This order with the seeds first, first + 1, ... and the settings that are not None.

        A width alone or a height alone keeps the other; one guidance replaces several, and several replace one.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        if n is not None and not 1 <= n <= MAX_SEEDS:
            raise ValueError(
                f"{n} pictures of each prompt; ask for 1 to {MAX_SEEDS} (--n), and for more with another --seed"
            )
        if seed is not None or n is not None:
            first = self.seeds[0] if seed is None else seed
            given["seeds"] = tuple(range(first, first + (n or 1)))
        if "side_px" in given:
            given = {"width_px": None, "height_px": None} | given
        elif self.side_px is not None and given.keys() & {"width_px", "height_px"}:
            given = {"side_px": None, "width_px": self.side_px, "height_px": self.side_px} | given
        if "guidance" in given:
            given = {"guidances": ()} | given
        elif "guidances" in given:
            given = {"guidance": None} | given
        return replace(self, **given)


def check_side(side_px: object) -> None:
    """Raise ValueError for a side that no picture can have, or only one far beyond what models are trained on."""
    if type(side_px) is not int or side_px < 1:
        said = str(side_px)[:40]
        said = said if type(side_px) is int else repr(said)
        raise ValueError(f"a side of {said} px; use a whole number from 1 to {MAX_SIDE_PX}")
    if side_px > MAX_SIDE_PX:
        raise ValueError(
            f"a side of {str(side_px)[:40]} px; use at most {MAX_SIDE_PX}: a square of that is {MAX_TOKENS} "
            "tokens, which take time by their square, and the released model was trained on about 1000 to 2000"
        )


def check_tokens(width_px: int, height_px: int, grid: tuple[int, int]) -> None:
    """Raise ValueError for a picture of more rows and columns of tokens than any model has a use for."""
    tokens = grid[0] * grid[1]
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"{width_px}x{height_px} px are {tokens} tokens of this model; draw smaller: use at most {MAX_TOKENS}"
        )


def weighted(text: str, usual: float = 1.0) -> Weighted:
    """PATH or PATH:STRENGTH; a colon that is not followed by a number belongs to the path."""
    path, _, tail = text.rpartition(":")
    try:
        strength = float(tail)
    except ValueError:
        return Weighted(path=Path(text), strength=usual)
    if path and (Path(path).is_file() or not Path(text).is_file()):
        return Weighted(path=Path(path), strength=strength)
    return Weighted(path=Path(text), strength=usual)


def parsed_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT, or one number for a square, in pixels."""
    found = re.fullmatch(r"(\d{1,18})(?:[x\u00d7](\d{1,18}))?", text.strip().lower())
    if not found:
        raise ValueError(f"size {text!r}; write width x height in pixels, such as 832x1248, or one number for a square")
    return int(found[1]), int(found[2] or found[1])
