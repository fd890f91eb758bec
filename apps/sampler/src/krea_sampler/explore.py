"""Where to look next: pictures as mixtures of seeds and prompts, neighbours of one, and ways between two.

Noise. Each seed stands for one draw of standard normal noise, and draws of different seeds are independent. A mixture
of them with weights whose squares sum to 1 is standard normal again, so the model meets the noise it was trained on
wherever one goes. Seeds are the axes of a sphere and a mixture is a point on it: to go from one to another is to go
along the great circle between them, and a point of it is again a mixture, however often it is done.

Prompts. The weights of prompts sum to 1, and a mixture is drawn with the mixed velocity, `sum w v(prompt)`: at every
moment of sampling the picture is pulled toward each prompt by its share. Encoded prompts themselves are not mixed: they
differ in length, and a token half way between two others stands for nothing.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from krea_sampler.record import check_text

__all__ = [
    "FORMAT",
    "MAX_PROMPTS",
    "MAX_PROMPT_LENGTH",
    "MAX_SEEDS",
    "Mixture",
    "between",
    "blend",
    "neighbours",
    "slerp",
]

FORMAT = "mixture/1"  # of the parameters of a mixed picture: programs that know only single seeds refuse it
MAX_SEEDS = 256
MAX_PROMPTS = 8
MAX_PROMPT_LENGTH = 4000  # characters
UNSEEN = 1e-3  # a seed of less weight makes under a millionth of the variance, and is left out of a blend
TOLERANCE = 1e-6  # of the sums of weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """What one picture is drawn from. Squares of the seeds' weights sum to 1, the prompts' weights sum to 1."""

    seeds: tuple[int, ...]
    seed_weights: tuple[float, ...]
    prompts: tuple[str, ...]
    prompt_weights: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_weights("seed", self.seeds, self.seed_weights, MAX_SEEDS)
        _check_weights("prompt", self.prompts, self.prompt_weights, MAX_PROMPTS)
        for seed in self.seeds:
            if type(seed) is not int or not 0 <= seed < 2**63:
                raise ValueError(f"seed {seed!r}; it must be a whole number between 0 and 2^63 - 1")
        for prompt in self.prompts:
            if type(prompt) is not str or not prompt.strip():
                raise ValueError('an empty prompt; say what to draw, such as "a red apple, flat style"')
            check_text(prompt)
            if len(prompt) > MAX_PROMPT_LENGTH:
                raise ValueError(f"a prompt of {len(prompt)} characters; use at most {MAX_PROMPT_LENGTH}")
        for name, total in (
            ("squares of the seed weights", sum(weight * weight for weight in self.seed_weights)),
            ("prompt weights", sum(self.prompt_weights)),
        ):
            if abs(total - 1) > TOLERANCE:
                raise ValueError(f"{name} sum to {total:g}; they must sum to 1")

    @classmethod
    def pure(cls, prompt: str, seed: int) -> "Mixture":
        """One prompt and one seed, what `krea-sample PROMPT --seed SEED` draws."""
        return cls(seeds=(seed,), seed_weights=(1.0,), prompts=(prompt,), prompt_weights=(1.0,))

    @property
    def is_pure(self) -> bool:
        """Whether it is one prompt and one seed."""
        return len(self.seeds) == len(self.prompts) == 1

    @property
    def leading_prompt(self) -> str:
        """The prompt of most weight, the first of equals."""
        return self.prompts[self.prompt_weights.index(max(self.prompt_weights))]

    @property
    def leading_seed(self) -> int:
        """The seed of most weight, the first of equals."""
        return self.seeds[self.seed_weights.index(max(self.seed_weights))]

    def record(self) -> dict[str, list[Any]]:
        """As JSON; floats in JSON keep every bit, so `of` gives back an equal mixture."""
        return {
            "seeds": list(self.seeds),
            "seed_weights": list(self.seed_weights),
            "prompts": list(self.prompts),
            "prompt_weights": list(self.prompt_weights),
        }

    @classmethod
    def of(cls, record: object) -> "Mixture":
        """Inverse of `record`; raises ValueError for anything else."""
        if not isinstance(record, Mapping):
            raise ValueError(f"a mixture of type {type(record).__name__}; it must be an object with seeds and prompts")
        names = ("seeds", "seed_weights", "prompts", "prompt_weights")
        parts: dict[str, Any] = {}
        for name in names:
            found = record.get(name)
            if not isinstance(found, list):
                raise ValueError(f"a mixture without a list of {name}; it needs {', '.join(names)}")
            parts[name] = tuple(found)
        return cls(**parts)


def slerp(a: Mapping[int, float], b: Mapping[int, float], u: float) -> dict[int, float]:
    """The point at `u` (0 is `a`, 1 is `b`) of the great circle between two unit vectors, given as weights per seed.

    The ends come back bit for bit. Between them, weights that cannot be seen are dropped and the rest is of length 1.
    """
    if not 0 <= u <= 1:
        raise ValueError(f"position {u}; use 0 (the first) to 1 (the second)")
    if u in (0, 1):
        return dict(b if u else a)
    axes = list(dict.fromkeys([*a, *b]))
    along = math.fsum(a.get(axis, 0.0) * b.get(axis, 0.0) for axis in axes)
    across = {axis: b.get(axis, 0.0) - along * a.get(axis, 0.0) for axis in axes}
    length = math.hypot(*across.values())
    if length < UNSEEN:
        return dict(a)
    angle = u * math.atan2(length, along)  # exact for small angles, unlike the arc cosine
    point = {axis: math.cos(angle) * a.get(axis, 0.0) + math.sin(angle) / length * across[axis] for axis in axes}
    seen = {axis: weight for axis, weight in point.items() if weight > UNSEEN}
    norm = math.hypot(*seen.values())
    return {axis: weight / norm for axis, weight in seen.items()}


def blend(a: Mixture, b: Mixture, u: float) -> Mixture:
    """The mixture at `u` of the way from `a` (0) to `b` (1): noise along the great circle, prompts along the line."""
    seeds = slerp(dict(zip(a.seeds, a.seed_weights, strict=True)), dict(zip(b.seeds, b.seed_weights, strict=True)), u)
    prompts = _lerp(
        dict(zip(a.prompts, a.prompt_weights, strict=True)), dict(zip(b.prompts, b.prompt_weights, strict=True)), u
    )
    return Mixture(
        seeds=tuple(seeds),
        seed_weights=tuple(seeds.values()),
        prompts=tuple(prompts),
        prompt_weights=tuple(prompts.values()),
    )


def between(a: Mixture, b: Mixture, count: int) -> list[Mixture]:
    """`count` mixtures at equal distances from `a` to `b`, both ends included."""
    if count < 2:
        raise ValueError(f"{count} pictures from one to another; at least 2 are needed")
    return [blend(a, b, i / (count - 1)) for i in range(count)]


def neighbours(of: Mixture, distance: float, count: int, seed: int) -> list[Mixture]:
    """`count` mixtures around one: its noise, moved by `distance` toward fresh noise, each in another direction.

    distance: above 0 (the same) up to 1 (all fresh), in right angles of the sphere. Row i depends on (seed, i) alone,
    so more rows of the same seed continue the board.
    """
    if not 0 < distance <= 1:
        raise ValueError(f"distance {distance}; use more than 0 (the same picture) up to 1 (another picture)")
    if count < 1:
        raise ValueError(f"{count} neighbours; ask for at least 1")
    return [blend(of, _other(of, _fresh(seed, row, of.seeds)), distance) for row in range(count)]


def _other(of: Mixture, seed: int) -> Mixture:
    return replace(of, seeds=(seed,), seed_weights=(1.0,))


def _fresh(seed: int, row: int, taken: tuple[int, ...]) -> int:
    """A seed below 2^31 from (seed, row) that is not taken: two equal seeds would not be independent."""
    for attempt in range(len(taken) + 1):
        digest = hashlib.blake2b(f"{seed}/{row}/{attempt}".encode(), digest_size=4).digest()
        found = int.from_bytes(digest) >> 1
        if found not in taken:
            return found
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _lerp(a: Mapping[str, float], b: Mapping[str, float], u: float) -> dict[str, float]:
    if u in (0, 1) or a == b:
        return dict(b if u == 1 else a)
    mixed = {one: (1 - u) * a.get(one, 0.0) + u * b.get(one, 0.0) for one in dict.fromkeys([*a, *b])}
    total = math.fsum(mixed.values())
    return {one: weight / total for one, weight in mixed.items() if weight > 0}


def _check_weights(name: str, ones: tuple[object, ...], weights: tuple[float, ...], most: int) -> None:
    if not ones or len(ones) != len(weights):
        raise ValueError(
            f"{len(ones)} {name}s with {len(weights)} weights; each {name} needs one, and there must be one"
        )
    if len(ones) > most:
        raise ValueError(f"a mixture of {len(ones)} {name}s; use at most {most}: start again from a fresh picture")
    if len(set(map(repr, ones))) < len(ones):
        raise ValueError(f"a {name} that is named twice in a mixture; add up its weights")
    for weight in weights:
        if type(weight) not in (int, float) or not 0 < weight <= 1 + TOLERANCE:
            raise ValueError(f"a {name} weight of {weight!r}; it must be above 0 and at most 1")
