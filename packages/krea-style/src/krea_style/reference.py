"""Reference pictures with strengths, and how several become one style.

A `Style` is what the model listens to: tokens of every reference and one number per reference that scales its
influence. What each block of the model gains is linear in that number: 0 is nothing, exactly; negative numbers push
away from the style; and mixing styles is adding references with scaled numbers. Strengths run from -2 to 2 and there
are at most 10 references, as in Krea's product.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krea_style.interfaces import StyleEncoder

__all__ = ["Reference", "Style", "batch", "mix", "path", "style"]

MOST = 10
STRENGTHS = (-2.0, 2.0)
TOTAL = 4.0  # sizes of all strengths together: two references at full strength; ours, beyond it pictures fall apart
SIDE_PX = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A picture `3 H W` in [-1, 1] that guides the look, and how strongly."""

    image: Tensor
    strength: float = 0.6

    def __post_init__(self) -> None:
        low, high = STRENGTHS
        if not low <= self.strength <= high:
            raise ValueError(f"strength {self.strength} is outside {low:g} to {high:g}; 0.6 is a good start, 0 is none")
        shape = tuple(self.image.shape)
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(
                f"a reference of shape {shape} is not one RGB picture (3, height, width); lay transparent pictures "
                "on a background and take one frame of an animation"
            )
        if min(shape[1:]) < SIDE_PX:
            raise ValueError(
                f"a reference of {shape[1]}x{shape[2]} pixels shows no style; use {SIDE_PX} a side or more"
            )
        low_px, high_px = (float(x) for x in torch.aminmax(self.image))
        if not (math.isfinite(low_px) and math.isfinite(high_px)) or low_px < -1.001 or high_px > 1.001:
            raise ValueError(f"pixels of a reference run from {low_px:.3g} to {high_px:.3g}; scale them to -1 to 1")
        if float((self.image.amax((1, 2)) - self.image.amin((1, 2))).max()) < 1 / 128:
            raise ValueError("a reference of one single colour has no style; choose a picture with something on it")


@dataclass(frozen=True, slots=True)
class Style:
    """Style tokens of a batch of images, without padding.

    tokens: `r m f` of all references end to end; scales: the influence of each; counts: references per image.
    """

    tokens: Tensor
    scales: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or not len(self.tokens) == len(self.scales) == sum(self.counts):
            raise ValueError(
                f"style tokens {tuple(self.tokens.shape)} and {len(self.scales)} scales do not fit the counts "
                f"{self.counts}; give (sum of counts, tokens, width) and one scale each"
            )
        if not all(math.isfinite(scale) for scale in self.scales):
            raise ValueError(f"style scales {self.scales} are not all finite")

    def scaled(self, factor: float) -> "Style":
        """The same references with every influence multiplied."""
        return Style(self.tokens, tuple(scale * factor for scale in self.scales), self.counts)

    def repeat(self, times: int) -> "Style":
        """The same batch several times over, for guidance."""
        return Style(self.tokens.repeat(times, 1, 1), self.scales * times, self.counts * times)


def style(references: Sequence[Reference], encoder: StyleEncoder, weights: Sequence[float] | None = None) -> Style:
    """Style of one image from 1 to 10 references.

    Each acts at its own strength and they add up; `weights` share out the influence instead: they are scaled to a sum
    of 1 and multiply the strengths, so that two equal references with equal weights act as one.
    """
    if not 1 <= len(references) <= MOST:
        raise ValueError(f"{len(references)} references; give 1 to {MOST} (a moodboard takes more)")
    parts = [1.0] * len(references) if weights is None else shares(weights, len(references))
    scales = tuple(part * reference.strength for part, reference in zip(parts, references, strict=True))
    total = sum(abs(scale) for scale in scales)
    if total > TOTAL + 1e-6:
        raise ValueError(
            f"{len(references)} references of strength {total:g} together exceed {TOTAL:g}; lower them, or give "
            "weights to share out one strength"
        )
    tokens = torch.cat([encoder(reference.image[None]) for reference in references])
    if not torch.isfinite(tokens).all():
        raise ValueError("the style encoder returned numbers that are not finite; its features or weights are broken")
    return Style(tokens, scales, (len(references),))


def shares(weights: Sequence[float], count: int) -> list[float]:
    """Weights of at least 0 scaled to a sum of 1."""
    total = sum(weights)
    if len(weights) != count or min(weights, default=0) < 0 or not 0 < total < math.inf:
        raise ValueError(f"weights {list(weights)} for {count} parts: give one number of at least 0 each, not all 0")
    return [weight / total for weight in weights]


def mix(styles: Sequence[Style], weights: Sequence[float]) -> Style:
    """One style between several styles of one image each; weights are scaled to a sum of 1."""
    parts = shares(weights, len(styles))
    if any(len(part.counts) != 1 for part in styles):
        raise ValueError("styles of several images cannot be mixed; mix those of each image, then batch the results")
    scaled = [one.scaled(share) for one, share in zip(styles, parts, strict=True)]
    joined = batch(scaled)
    return Style(joined.tokens, joined.scales, (sum(joined.counts),))


def path(start: Style, end: Style, steps: int = 9) -> list[Style]:
    """Styles at equal distances from one to the other, both included."""
    if steps < 2:
        raise ValueError(f"a path of {steps} styles; use at least 2")
    return [mix([start, end], [1 - i / (steps - 1), i / (steps - 1)]) for i in range(steps)]


def batch(styles: Sequence[Style]) -> Style:
    """Styles of single images (or of batches) end to end, for a batch of images."""
    tokens = torch.cat([one.tokens for one in styles])
    scales = tuple(scale for one in styles for scale in one.scales)
    return Style(tokens, scales, tuple(count for one in styles for count in one.counts))
