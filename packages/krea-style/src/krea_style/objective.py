"""Learn style without style labels: redraw a picture from its caption and a scrambled view of itself.

The reference of each picture is a view of it whose content is destroyed (crop, shuffled patches, flips) while colours
and strokes stay; the caption carries the content, so all that is left for the style tokens to explain is the look.
Krea trained its style module self-supervised but did not publish how (Krea 2 technical report, section "Style
reference"): this is our reading.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from krea_model.flow import logit_normal, mix, shift, velocity
from krea_model.interfaces import Conditioning
from krea_model.packing import image_mean, pack, per_token
from torch import Tensor
from torch.nn import Module

from krea_style.draws import generator, normals, uniforms
from krea_style.encoder import Features
from krea_style.reference import Style
from krea_style.styled import StyledMMDiT

__all__ = ["Pictures", "StyleObjective", "Views", "drops", "view"]


class Pictures(Protocol):
    """The part of a training batch that is used here; krea-train's Batch has it."""

    @property
    def images(self) -> Tensor:
        """`b 3 H W`, uint8."""
        ...

    @property
    def captions(self) -> Sequence[Mapping[str, str]]: ...

    @property
    def ids(self) -> Sequence[str]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """How a view destroys content; each part can be left out to see what it does.

    crop: smallest and largest side of the crop relative to the picture, (1, 1) for none. patches: the view is cut into
    patches x patches pieces that change places, 1 for none. flips: each piece is mirrored at random. keep: share of
    the pieces that stay, the others repeat them (masking that invents no colour).
    """

    crop: tuple[float, float] = (0.5, 0.9)
    patches: int = 4
    flips: bool = True
    keep: float = 0.75

    def __post_init__(self) -> None:
        low, high = self.crop
        if not (0 < low <= high <= 1 and self.patches >= 1 and 0 < self.keep <= 1):
            raise ValueError(f"crop must be 0 < low <= high <= 1, patches at least 1 and keep in (0, 1]: {self}")


def view(image: Tensor, views: Views, draws: np.random.Generator) -> Tensor:
    """A content-destroyed view of one picture `3 H W`, of the same size, in its own colours."""
    _, h, w = image.shape
    x = crop(image, views.crop, draws)
    n = views.patches
    if n == 1 and not views.flips:
        return x
    ph, pw = max(h // n, 1), max(w // n, 1)
    x = F.interpolate(x[None], (ph * n, pw * n), mode="bilinear", antialias=True)[0]
    pieces = x.unflatten(1, (n, ph)).unflatten(3, (n, pw)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    order = draws.permutation(n * n)
    kept = max(1, round(views.keep * n * n))
    order = np.concatenate([order[:kept], draws.choice(order[:kept], n * n - kept)])
    pieces = pieces[torch.from_numpy(draws.permutation(order))]
    if views.flips:
        pieces = torch.stack([flip(piece, draws) for piece in pieces])
    x = pieces.unflatten(0, (n, n)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return F.interpolate(x[None], (h, w), mode="bilinear", antialias=True)[0]


def crop(image: Tensor, sides: tuple[float, float], draws: np.random.Generator) -> Tensor:
    """A random crop, resized to the size of the picture."""
    _, h, w = image.shape
    side = draws.uniform(*sides)
    ch, cw = max(1, round(side * h)), max(1, round(side * w))
    if (ch, cw) == (h, w):
        return image
    top, left = int(draws.integers(0, h - ch + 1)), int(draws.integers(0, w - cw + 1))
    part = image[None, :, top : top + ch, left : left + cw]
    return F.interpolate(part, (h, w), mode="bilinear", antialias=True)[0]


def flip(piece: Tensor, draws: np.random.Generator) -> Tensor:
    """The piece mirrored along neither, either or both of its sides."""
    dims = [dim for dim, on in zip((1, 2), draws.random(2) < 0.5, strict=True) if on]
    return piece.flip(dims) if dims else piece


def drops(u: float, style: float, text: float, both: float) -> tuple[bool, bool]:
    """Whether style and text are left out, from one number of [0, 1): disjoint shares of the batch."""
    return u < both + style, u < both or both + style <= u < both + style + text


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleObjective:
    """Flow matching with a scrambled view of each picture as its reference; an Objective for a `StyledMMDiT`.

    latents: (batch, step) -> `b c h w` or a list of `c h w`, on the model's device; text: prompts -> states;
    features: the frozen features of the encoder. drop_*: shares of pictures without style, without text, without both.
    The longest caption is used: it should say everything except the look. mu: shift of the times.
    """

    latents: Callable[[Pictures, int], Tensor | Sequence[Tensor]]
    text: Callable[[Sequence[str]], Conditioning]
    features: Features
    seed: int
    views: Views = field(default_factory=Views)
    drop_style: float = 0.1
    drop_text: float = 0.1
    drop_both: float = 0.05
    mu: float = 0.0
    patch: int = 2

    def __post_init__(self) -> None:
        shares = (self.drop_style, self.drop_text, self.drop_both)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"drop shares {shares} must be at least 0 and add up to at most 1")

    def __call__(self, model: Module, batch: Pictures, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the pictures; ValueError if the model is not a `StyledMMDiT`."""
        if not isinstance(model, StyledMMDiT):
            raise ValueError(f"the model must be a StyledMMDiT, not a {type(model).__name__}; wrap the base")
        ids = list(batch.ids)
        image, grids = pack(self.latents(batch, step), self.patch)
        image = image.float()
        sizes = [h * w for h, w in grids]
        noise = torch.cat(
            [normals(self.seed, "noise", step, i, (n, image.shape[-1])) for i, n in zip(ids, sizes, strict=True)]
        )
        t = shift(logit_normal(uniforms(self.seed, "time", step, ids)), self.mu).to(image.device)
        left_out = [
            drops(u, self.drop_style, self.drop_text, self.drop_both)
            for u in uniforms(self.seed, "drop", step, ids).tolist()
        ]
        prompts = ["" if out[1] else longest(text) for text, out in zip(batch.captions, left_out, strict=True)]
        style = self.style(model, batch, step, [not out[0] for out in left_out])
        noise = noise.to(image.device)
        v = model(mix(image, noise, per_token(t, grids)), t, self.text(prompts), grids, style)
        losses = image_mean((v.float() - velocity(image, noise)).square(), grids)
        return losses.mean(), {"loss": losses.detach().mean()}

    def style(self, model: StyledMMDiT, batch: Pictures, step: int, wanted: Sequence[bool]) -> Style | None:
        """Style tokens of a scrambled view of every wanted picture, at strength 1; None if none is wanted."""
        chosen = [i for i, on in enumerate(wanted) if on]
        if not chosen:
            return None
        pictures = batch.images[chosen].float() / 127.5 - 1
        draws = [generator(self.seed, "view", step, batch.ids[i]) for i in chosen]
        scrambled = torch.stack([view(one, self.views, g) for one, g in zip(pictures, draws, strict=True)])
        device = model.resampler.queries.device
        tokens = model.encoder(self.features)(scrambled.to(device))
        return Style(tokens, (1.0,) * len(chosen), tuple(int(on) for on in wanted))


def longest(captions: Mapping[str, str]) -> str:
    """The caption with the most detail among those of an image."""
    return next((captions[name] for name in ("long", "medium", "short") if name in captions), "")
