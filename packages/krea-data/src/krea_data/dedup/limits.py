"""How near two pictures must be to be copies; every stage of a recipe may have limits of its own."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

__all__ = ["COLOUR_BITS", "MOST_BITS", "SHAPE_BITS", "Limits", "widest"]

SHAPE_BITS, COLOUR_BITS = 144, 42
MOST_BITS = 17  # of shape: a search further out would look up thousands of values per picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Pictures within all three are linked. The colour hash has red, orange and yellow in one bin: hence the mean."""

    phash_limit: int = 8  # of 144 bits
    colour_limit: int = 2  # of 42 bits
    mean_limit: int = 16  # of 255, per channel of the mean colour

    def __post_init__(self) -> None:
        if not (
            0 <= self.phash_limit <= MOST_BITS and 0 <= self.colour_limit <= COLOUR_BITS and 0 <= self.mean_limit <= 255
        ):
            raise ValueError(
                f"limits {self.phash_limit} of up to {MOST_BITS} bits, {self.colour_limit} of {COLOUR_BITS} bits and"
                f" {self.mean_limit} of 255 are out of range; 8, 2 and 16 are usual, and redraws are for embeddings"
            )

    @property
    def rule(self) -> str:
        """The limits in words."""
        return (
            f"shape <= {self.phash_limit} of {SHAPE_BITS} bits, colour <= {self.colour_limit} of {COLOUR_BITS} bits,"
            f" mean colour <= {self.mean_limit} of 255"
        )

    def covers(self, other: "Limits") -> bool:
        """Whether whatever is within the other limits is within these."""
        return all(mine >= theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))

    def hold(self, phash: int, colour: int, mean: int) -> bool:
        """Whether these distances are within the limits."""
        return phash <= self.phash_limit and colour <= self.colour_limit and mean <= self.mean_limit


def widest(limits: Iterable[Limits]) -> Limits:
    """The narrowest limits that cover all of these."""
    all_of = list(limits)
    return Limits(
        phash_limit=max(one.phash_limit for one in all_of),
        colour_limit=max(one.colour_limit for one in all_of),
        mean_limit=max(one.mean_limit for one in all_of),
    )
