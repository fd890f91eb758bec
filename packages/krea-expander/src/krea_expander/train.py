"""The reward for a group of expansions of one prompt, for reinforcement learning through the pictures they cause.

Three rewards stay apart until they are combined: quality of the picture, faithfulness to the prompt, and each member's
distance to the rest of its group; members that break a rule of format or safety get the lowest value of every reward
before anything is normalised. The weight of the distance is a constant: annealed, the group collapses to one text
(Krea 2 technical report, section on the prompt expander). How rewards become advantages is the caller's choice:
`krea_rl.gdpo` fits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from krea_expander.diversity import distances, text_distances
from krea_expander.faithful import faithfulness
from krea_expander.gates import check

__all__ = ["Weights", "group_rewards", "reward_table"]

Grid = list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weight of each reward; constants, with a distance weight of at least 1.

    Under GDPO a distance weight of 0.5 let a toy of 64 texts collapse, a weight of 1 kept it spread.
    """

    quality: float = 1.0
    faithful: float = 1.0
    distance: float = 1.0

    def __post_init__(self) -> None:
        if min(self.quality, self.faithful) < 0 or self.distance <= 0:
            raise ValueError(f"weights {self} must not be negative, and the distance must count; keep it at 1 or more")

    def table(self) -> dict[str, float]:
        """The weights by reward."""
        return {"quality": self.quality, "faithful": self.faithful, "distance": self.distance}


def group_rewards(
    prompt: str,
    texts: Sequence[str],
    quality: Sequence[float],
    embeddings: Sequence[Sequence[float]] | None = None,
) -> dict[str, list[float]]:
    """Rewards of the members of one group, by name; all pictures of a group must be drawn from the same noise.

    quality: a score of each picture; embeddings: of each picture, by default the texts themselves are compared.
    """
    if len(texts) < 2 or len(texts) != len(quality) or (embeddings is not None and len(embeddings) != len(texts)):
        given = f"{len(texts)} texts, {len(quality)} scores"
        raise ValueError(f"{given}: give a group of at least two, with one score and one embedding each")
    passed = [i for i, text in enumerate(texts) if not check(text, prompt)]
    # the failed do not count as neighbours either: a text that broke the rules is far from everything
    if embeddings is None:
        apart = text_distances([texts[i] for i in passed])
    else:
        apart = distances([embeddings[i] for i in passed])
    rewards = {"quality": [min(quality)] * len(texts), "faithful": [0.0] * len(texts), "distance": [0.0] * len(texts)}
    for i, distance in zip(passed, apart, strict=True):
        rewards["quality"][i] = float(quality[i])
        rewards["faithful"][i] = faithfulness(prompt, texts[i])
        rewards["distance"][i] = distance
    return rewards


def reward_table(
    groups: Sequence[Mapping[str, Sequence[float]]],
    combine: Callable[[dict[str, Grid], dict[str, float]], Any],
    weights: Weights | None = None,
) -> Any:
    """Advantages of several groups of one size: what `combine` makes of rewards (prompts by members) and weights."""
    names = (weights or Weights()).table()
    if not groups or len({len(group[name]) for group in groups for name in names}) != 1:
        raise ValueError("groups must be of one size, and at least one; pad no group, leave it out")
    return combine({name: [list(group[name]) for group in groups] for name in names}, names)
