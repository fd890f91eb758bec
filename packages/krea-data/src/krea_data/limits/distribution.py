"""How a number is spread over rows, what a limit would leave out, and the rows next to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krea_data.limits.stages import Limit, number
from krea_data.rows import Row

__all__ = ["Around", "Distribution", "distributions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Around:
    """What a limit does: the share of rows that it leaves out, and the ids nearest to it on both sides."""

    bound: float
    left_out: float
    inside: tuple[str, ...]  # the nearest first
    outside: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """The values of a field in rising order, their rows, and how many rows lack it."""

    field: str
    values: NDArray[np.float64]
    ids: tuple[str, ...]
    missing: int = 0

    def bins(self, count: int = 60) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(rows of each bin, `count` + 1 edges) between the 1st and the 99th percentile, which take in what is beyond.

        Logarithmic where the values are above 0 and spread over more than three powers of ten.
        """
        if not len(self.values):
            return np.zeros(count, np.int64), np.linspace(0.0, 1.0, count + 1)
        low, high = np.quantile(self.values, [0.01, 0.99]).tolist()
        if low == high:
            low, high = low - 0.5, high + 0.5
        wide = low > 0 and high / low > 1000
        edges = np.geomspace(low, high, count + 1) if wide else np.linspace(low, high, count + 1)
        return np.histogram(self.values.clip(edges[0], edges[-1]), edges)[0].astype(np.int64), edges

    def around(self, limit: Limit, examples: int = 8) -> list[Around]:
        """What each bound of the limit does by itself."""
        found: list[Around] = []
        if limit.least is not None:
            place = int(np.searchsorted(self.values, limit.least, side="left"))
            below, above = self.ids[:place][::-1][:examples], self.ids[place : place + examples]
            found.append(Around(bound=limit.least, left_out=self._share(place), inside=above, outside=below))
        if limit.most is not None:
            place = int(np.searchsorted(self.values, limit.most, side="right"))
            below, above = self.ids[:place][::-1][:examples], self.ids[place : place + examples]
            left_out = self._share(len(self.values) - place)
            found.append(Around(bound=limit.most, left_out=left_out, inside=below, outside=above))
        return found

    def bound_for(self, share: float, *, largest: bool = False) -> float:
        """The bound that leaves out about this share of rows: the smallest values, or the `largest`."""
        if not 0 <= share <= 1 or not len(self.values):
            raise ValueError(f"no bound on {self.field} leaves out {share:g} of {len(self.values)} rows; use 0 to 1")
        return float(np.quantile(self.values, 1 - share if largest else share))

    def _share(self, rows: int) -> float:
        return rows / len(self.values) if len(self.values) else 0.0


def distributions(rows: Iterable[Row], fields: Sequence[str]) -> list[Distribution]:
    """The distribution of each field; equal values are in order of id."""
    found: dict[str, list[tuple[float, str]]] = {field: [] for field in fields}
    missing = dict.fromkeys(fields, 0)
    for row in rows:
        for field in fields:
            value = number(row, field)
            if value is None or value != value:
                missing[field] += 1
            else:
                found[field].append((value, row.id))
    made: list[Distribution] = []
    for field, pairs in found.items():
        pairs.sort()
        values = np.array([value for value, _ in pairs], dtype=np.float64)
        made.append(Distribution(field, values, tuple(row_id for _, row_id in pairs), missing[field]))
    return made
