"""What is kept: the limits of every task, in one small file beside the database so that all workers agree."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from krea_data.limits.stages import Stage, stages
from krea_data.tasks.licence import PERMISSIVE

__all__ = ["Recipe", "read", "write"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Limits of a curation. A row that has been answered keeps its answer when a limit is changed.

    `stages` are limits on measured numbers for each stage of training, chosen anew at every export; no row is answered
    by them: {"sft": {"flat.entropy": {"least": 2}}}.
    """

    licences: tuple[str, ...] = PERMISSIVE
    least_px: int = 32  # of the shorter side
    aspect_limit: float = 3.0
    complexity_limit: float = 0.5  # share of the variance that half the side may lose
    phash_limit: int = 8  # of 144 bits
    colour_limit: int = 2  # of 42 bits
    stages: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stages(self.stages)

    def stage(self, name: str) -> Stage:
        """A stage by name, or ValueError."""
        found = {stage.name: stage for stage in stages(self.stages)}
        if name not in found:
            known = f"there are {', '.join(found)}" if found else "the recipe has none yet"
            raise ValueError(f"no stage {name!r}; {known}")
        return found[name]


def write(recipe: Recipe, path: Path) -> None:
    """Write the recipe as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(asdict(recipe), indent=2) + "\n", "utf-8")
    os.replace(part, path)


def read(path: Path) -> Recipe:
    """The recipe of a file, or the usual one if there is no file; raises ValueError for what is not a recipe."""
    if not path.exists():
        return Recipe()
    names = [field.name for field in fields(Recipe)]
    try:
        given = dict(json.loads(path.read_text("utf-8")))
        if unknown := sorted(given.keys() - set(names)):
            raise ValueError(f"{', '.join(unknown)} is not one of {', '.join(names)}")
        if "licences" in given:
            given["licences"] = tuple(given["licences"])
        return Recipe(**given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a usable recipe ({error}); correct it or remove it") from error
