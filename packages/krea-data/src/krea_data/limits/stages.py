"""What a stage asks of a row: numbers of results between limits, and a reason for every row that it leaves out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from krea_data.checks import check_name
from krea_data.rows import Row

__all__ = ["Limit", "Stage", "number", "selected", "stages"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A number of a task's value, such as `flat.entropy`, is at least `least` and at most `most`."""

    field: str
    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        task, _, name = self.field.partition(".")
        if not name:
            raise ValueError(f"{self.field!r} is no field; name a task and a number of its value, such as flat.entropy")
        check_name(task)
        if self.least is None and self.most is None:
            raise ValueError(f"the limit on {self.field} has neither `least` nor `most`; give one of them")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"no {self.field} is at least {self.least:g} and at most {self.most:g}")

    def refusal(self, row: Row) -> str | None:
        """Why the row is left out, in words, or None."""
        value = number(row, self.field)
        if value is None:
            return f"{self.field} was not measured"
        if self.least is not None and value < self.least:
            return f"{self.field} is {value:g}, below {self.least:g}"
        if self.most is not None and value > self.most:
            return f"{self.field} is {value:g}, above {self.most:g}"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage of training by name, and its limits."""

    name: str
    limits: tuple[Limit, ...] = ()

    def refusal(self, row: Row) -> str | None:
        """Why the row is left out, or None; a row that a task dropped is left out for that."""
        if row.dropped is not None:
            return f"{row.dropped[0]} dropped it: {row.dropped[1]}"
        return next((why for limit in self.limits if (why := limit.refusal(row)) is not None), None)


def number(row: Row, field: str) -> float | None:
    """A number of a row's results, or None if it was not measured; truth counts as 1 and 0."""
    task, _, name = field.partition(".")
    result = row.results.get(task)
    value = None if result is None else result.value.get(name)
    return float(value) if isinstance(value, int | float) else None


def stages(recipe: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Stages as they stand in a recipe: {"pretrain-256": {"flat.entropy": {"least": 0.5}}, ...}; ValueError if not."""
    found: list[Stage] = []
    for name, limits in recipe.items():
        if not isinstance(limits, Mapping):
            raise ValueError(f"stage {name!r} is {limits!r:.60}; give limits by field")
        made: list[Limit] = []
        for field, bounds in limits.items():
            if not isinstance(bounds, Mapping) or not set(bounds) <= {"least", "most"}:
                raise ValueError(f"the limit on {field!r} of stage {name!r} is {bounds!r:.60}; use least and most")
            if not all(isinstance(bound, int | float) for bound in bounds.values()):
                raise ValueError(f"the limit on {field!r} of stage {name!r} is {bounds!r:.60}; use numbers")
            made.append(Limit(field=field, **bounds))
        found.append(Stage(name=name, limits=tuple(made)))
    return tuple(found)


def selected(rows: Iterable[Row], chosen: Sequence[Stage]) -> Iterator[tuple[Row, dict[str, str]]]:
    """Every row with the stages that leave it out, and why; a row without any is in all of them."""
    for row in rows:
        reasons = {stage.name: stage.refusal(row) for stage in chosen}
        yield row, {name: why for name, why in reasons.items() if why is not None}
