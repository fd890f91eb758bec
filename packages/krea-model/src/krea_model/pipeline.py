"""Prompts in, pictures out: a transformer, a text encoder and an autoencoder with the way to sample them."""

import logging
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from krea_model.damage import lacks_memory
from krea_model.inputs import check_prompts, check_text, seed_list
from krea_model.interfaces import Autoencoder, Conditioning, Grids, TextEncoder
from krea_model.mmdit import MMDiT
from krea_model.packing import pack, unpack
from krea_model.plain import is_number, is_whole
from krea_model.presets import Preset, preset
from krea_model.sampling import OnStep, euler, guided, noise, schedule, start

__all__ = ["Defaults", "Pipeline", "memory_explained"]

log = logging.getLogger(__name__)

MOST_TOKENS = 2**22  # of one picture, far beyond what any memory holds


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """How to sample when nothing else is asked for: guidance 0 means none, mu None that of the picture's tokens."""

    side_px: int = 64
    steps: int = 24
    guidance: float = 2.0
    mu: float | None = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """Everything that turns a prompt into a picture.

    about: what it was made of, `name` among it; manifest: that of a bundle folder, else empty; sha256: what decides a
    picture, so that two models of one hash draw the same (`identity`).
    """

    model: MMDiT
    text: TextEncoder
    autoencoder: Autoencoder
    defaults: Defaults
    about: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def unit(self) -> int:
        """Sides of pictures are multiples of this many pixels."""
        return self.autoencoder.compression * self.model.config.patch

    @property
    def device(self) -> torch.device:
        """Where pictures are drawn."""
        return self.model.first.weight.device

    def with_preset(self, chosen: str | Preset) -> "Pipeline":
        """The same model, sampled by a preset ("raw" or "turbo") unless told otherwise."""
        found = chosen if isinstance(chosen, Preset) else preset(chosen)
        usual = replace(self.defaults, steps=found.steps, guidance=found.guidance, mu=found.mu)
        return replace(self, defaults=usual)

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        width_px: int | Sequence[int] | None = None,
        height_px: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        image: Tensor | Sequence[Tensor] | None = None,
        strength: float = 0.6,
        negative: str = "",
        on_step: OnStep | None = None,
    ) -> list[Tensor]:
        """Pictures `3 H W`, uint8, one per prompt and seed, all in one batch; None takes the default.

        Sizes may differ: give one width or one per picture, the same for heights. Each picture depends on its own
        prompt, seed and size alone, up to the rounding of a batch.
        image: picture to start from, uint8 `3 H W`, one for all or one each, of the size to draw (or setting it); of it
        the more remains the lower `strength` in (0, 1] is. negative: what guidance leads away from.
        ValueError for wrong sizes and settings, MemoryError where a batch does not fit, RuntimeError for NaN.
        """
        check_prompts(prompts, seeds)
        check_text(negative, "the negative prompt")
        count, usual, seeds = len(prompts), self.defaults, seed_list(seeds, len(prompts))
        images = None if image is None else _listed(image, count)
        grids = self.grids(count, width_px, height_px, images)
        guidance = usual.guidance if guidance is None else guidance
        if not is_number(guidance) or not is_number(strength, above=0) or strength > 1:
            raise ValueError(f"guidance {guidance!r} and strength {strength!r}; use a number, and more than 0 up to 1")
        if negative and not guidance:
            log.warning("guidance is 0, so what to lead away from has no effect: %r", negative)
        times = schedule(usual.steps if steps is None else steps, usual.mu, grids, strength if images else 1.0)
        with memory_explained(self._named(grids)), torch.inference_mode():
            cond = self._encode(prompts)
            uncond = self._encode([negative] * count) if guidance else None
            x = noise(seeds, grids, self.model.config.token_features, self.device, patch=self.model.config.patch)
            if images is not None:
                x = start(self._tokens(images), x, grids, times)
            x = euler(guided(self.model, cond, uncond, guidance), x, cond, grids, times, on_step)
            if not x.isfinite().all():
                raise RuntimeError(
                    f"{self._named(grids)} came out as NaN; load the model in bfloat16 or float32 (float16 "
                    "overflows), or take off a LoRA that is too strong"
                )
            return self.pictures(x, grids)

    def pictures(self, tokens: Tensor, grids: Grids, most_px: int | None = None) -> list[Tensor]:
        """Clean tokens `s f` -> pictures `3 H W`, uint8, on the CPU; each is decoded by itself.

        most_px: for previews, shrink latents so that no side gets longer than about this, and decode those.
        """
        found = []
        for latent in unpack(tokens.float(), grids, self.model.config.patch):
            longest = max(latent.shape[-2:]) * self.autoencoder.compression
            if most_px is not None and longest > most_px:
                size = [max(1, round(side * most_px / longest)) for side in latent.shape[-2:]]
                latent = F.interpolate(latent[None], size, mode="area")[0]
            decoded = self.autoencoder.decode(latent[None])[0]
            found.append(((decoded + 1) * 127.5).round().clamp(0, 255).byte().cpu())
        return found

    def grids(
        self,
        count: int,
        width_px: int | Sequence[int] | None = None,
        height_px: int | Sequence[int] | None = None,
        images: Sequence[Tensor] | None = None,
    ) -> list[tuple[int, int]]:
        """Token rows and columns of `count` pictures; ValueError names the nearest sizes that can be drawn."""
        if images is not None:
            wrong = [_described(one) for one in images if not _is_picture(one)]
            if wrong or len(images) != count:
                said = wrong[0] if wrong else f"{len(images)} pictures"
                raise ValueError(f"{said} to start from; give one uint8 picture (3, height, width), or {count}")
            widths, heights = [one.shape[2] for one in images], [one.shape[1] for one in images]
        else:
            widths = heights = [self.defaults.side_px] * count
        wanted = _each(width_px, count, widths, "widths"), _each(height_px, count, heights, "heights")
        if images is not None and wanted != (widths, heights):
            raise ValueError(f"a picture of {widths[0]}x{heights[0]} px to start from does not have the size to draw")
        return [self._grid(width, height) for width, height in zip(*wanted, strict=True)]

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        unit, near = self.unit, []
        for name, side in (("widths", width), ("heights", height)):
            if side < unit or side % unit:
                below = max(unit, side // unit * unit)
                near.append(f"the nearest {name} are {below} and {below + unit}")
        if near:
            raise ValueError(f"{width}x{height} px: sides must be multiples of {unit}; {', '.join(near)}")
        grid = height // unit, width // unit
        if grid[0] * grid[1] > MOST_TOKENS:
            most = unit * math.isqrt(MOST_TOKENS)
            raise ValueError(f"{width}x{height} px are too many; draw at most as many as {most}x{most} have")
        return grid

    def _named(self, grids: Grids) -> str:
        height, width = (side * self.unit for side in max(grids, key=lambda grid: grid[0] * grid[1]))
        return (
            f"a picture of {width}x{height} px" if len(grids) == 1 else f"{len(grids)} pictures of {width}x{height} px"
        )

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        cond = self.text(list(prompts))
        return Conditioning(cond.states.to(self.device), cond.lengths)

    def _tokens(self, images: Sequence[Tensor]) -> Tensor:
        latents = [self.autoencoder.encode(one[None].float() / 127.5 - 1)[0] for one in images]
        return pack(latents, self.model.config.patch)[0].to(self.device)


@contextmanager
def memory_explained(what: str) -> Iterator[None]:
    """Turns the many errors of memory that is used up into one MemoryError of one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if lacks_memory(error):
            raise MemoryError(
                f"not enough memory for {what}; draw smaller or fewer pictures at once, or load the model in bfloat16"
            ) from error
        raise


def _each(given: int | Sequence[int] | None, count: int, usual: list[int], name: str) -> list[int]:
    found = usual if given is None else _listed(given, count)
    wrong = [one for one in found if not is_whole(one)]
    if wrong:
        raise ValueError(f"one of the {name} is {wrong[0]!r}; give pixels as whole numbers, one for all or one each")
    if len(found) != count:
        raise ValueError(f"{len(found)} {name} for {count} pictures; give one for all or one each")
    return [operator.index(one) for one in found]


def _listed(given: Any, count: int) -> list[Any]:
    """One for all or one each, as a list."""
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * count


def _is_picture(image: object) -> bool:
    return isinstance(image, Tensor) and image.ndim == 3 and len(image) == 3 and image.dtype == torch.uint8


def _described(image: object) -> str:
    if isinstance(image, Tensor):
        return f"one of {tuple(image.shape)}, {image.dtype}"
    return f"one of type {type(image).__name__}, no tensor,"
