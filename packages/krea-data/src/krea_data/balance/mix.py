"""A stage's mix: what share of a training set each domain gets, and which rows, given what there is."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from krea_data.balance.caps import draw

__all__ = ["Mix", "Portion", "mixed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """Shares of domains by name, which sum to 1, of `rows` rows; a row comes up to `most` times to fill its share."""

    shares: Mapping[str, float]
    rows: int
    most: int = 1

    def __post_init__(self) -> None:
        total = sum(self.shares.values())
        if not self.shares or min(self.shares.values()) < 0 or abs(total - 1) > 1e-6:
            raise ValueError(f"shares {dict(self.shares)} sum to {total:g}; give numbers of at least 0 that sum to 1")
        if self.rows < 1 or self.most < 1:
            raise ValueError(f"{self.rows} rows, each up to {self.most} times: both must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Portion:
    """What one domain got: `wanted` places, and the ids in order of their draw with how often each comes."""

    wanted: int
    times: Mapping[str, int]

    @property
    def missing(self) -> int:
        """Places that its rows could not fill."""
        return self.wanted - sum(self.times.values())


def mixed(ids: Sequence[str], domain: Callable[[str], str], mix: Mix, *, seed: int = 0) -> dict[str, Portion]:
    """Fill each domain's share with its own rows. What a domain lacks is not given to others, but said.

    The choice depends on the seed and the ids alone. Rows of domains that the mix does not name are left out.
    """
    pools: dict[str, list[str]] = defaultdict(list)
    for one in dict.fromkeys(ids):
        pools[domain(one)].append(one)
    return {
        name: _portion(sorted(pools.get(name, ()), key=lambda one: (draw(one, seed), one)), wanted, mix.most)
        for name, wanted in _places(mix).items()
    }


def _places(mix: Mix) -> dict[str, int]:
    """Whole numbers that sum to the rows; the largest remainders are rounded up."""
    exact = {name: share * mix.rows for name, share in mix.shares.items()}
    places = {name: int(value + 1e-9) for name, value in exact.items()}
    short = mix.rows - sum(places.values())
    for name in sorted(exact, key=lambda name: (places[name] - exact[name], name))[:short]:
        places[name] += 1
    return places


def _portion(pool: Sequence[str], wanted: int, most: int) -> Portion:
    if not pool:
        return Portion(wanted=wanted, times={})
    filled = min(wanted, most * len(pool))
    whole, rest = divmod(filled, len(pool))
    times = {one: whole + (place < rest) for place, one in enumerate(pool)}
    return Portion(wanted=wanted, times={one: count for one, count in times.items() if count})
