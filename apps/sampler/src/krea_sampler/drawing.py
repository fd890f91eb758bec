"""An order and an artist in, finished pictures with their parameters out."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from krea_model.flow import late
from krea_model.pipeline import Pipeline
from PIL import Image, ImageOps
from torch import Tensor

from krea_sampler import picture
from krea_sampler.compose import Artist
from krea_sampler.heard import shortened
from krea_sampler.order import FORMAT, MAX_SIDE_PX, Order, check_tokens
from krea_sampler.safety import Safety, check_pictures, check_prompts
from krea_sampler.sheet import check_sheet, contact_sheet

__all__ = ["Drawing", "OnPreview", "OnStep", "difference", "draw", "use_threads_of"]

OnStep = Callable[[int, int], None]
"""Called with the steps done so far and the steps of the whole order."""

OnPreview = Callable[[Image.Image], None]
"""Called every few steps with a small picture of what the model sees now."""

PREVIEW_PX = 256
PREVIEWS = 8  # of each picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A finished picture, its parameters, and the name of the file that it goes to unless somebody says otherwise."""

    image: Image.Image
    parameters: dict[str, Any]
    stem: str


def draw(
    artist: Artist,
    order: Order,
    wishes: Sequence[str] = (),
    on_step: OnStep | None = None,
    *,
    on_preview: OnPreview | None = None,
    safety: Safety | None = None,
) -> Iterator[Drawing]:
    """Draw one picture per prompt, guidance and seed, handed over as each is done, or one contact sheet of them all.

    Every picture is drawn by itself, so that it is the same to the last bit whatever else this call draws.
    `wishes` are the prompts as they were typed, where the order holds their expansions. `safety` sees prompts and the
    picture to start from before anything is drawn, and each picture before it is handed over; it raises Refused.
    """
    order = _settled(artist, order)
    check_prompts(safety, [*wishes, *order.prompts, order.negative])
    check_pictures(safety, [artist.image] if artist.image else [], "the picture to start from")
    images = _images(artist, order, on_step, on_preview, safety)
    if order.grid:
        rows = [f"{p}, guidance {g:g}" for p in order.prompts for g in order.guidances] or order.prompts
        sheet = contact_sheet(list(images), rows, [f"seed {seed}" for seed in order.seeds])
        yield _drawing(artist, order, wishes, sheet)
        return
    typed = dict(zip(order.prompts, wishes, strict=False))
    for single, image in zip(order.singles, images, strict=True):
        (prompt,) = single.prompts
        drawn = _drawing(artist, single, [typed[prompt]] if prompt in typed else [], image)
        yield replace(drawn, stem=f"{drawn.stem}-g{single.guidance:g}") if order.guidances else drawn


def use_threads_of(parameters: Mapping[str, Any]) -> None:
    """Compute with as many threads as when this picture was drawn: the last bits depend on them."""
    threads = parameters.get("threads")
    if isinstance(threads, int) and 1 <= threads <= 256:
        torch.set_num_threads(threads)


def difference(path: Path, drawn: Image.Image) -> int:
    """The largest difference of any value (0 to 255) between the picture at `path` and a drawn one; 0 is identical."""
    before, after = (np.asarray(image.convert("RGB"), dtype=int) for image in (picture.pixels(path), drawn))
    return int(np.abs(before - after).max()) if before.shape == after.shape else 255


def _settled(artist: Artist, order: Order) -> Order:
    """The order with the model's defaults in place of None, and a size that can be drawn; raises ValueError if not."""
    defaults = artist.bundle.defaults
    usual = (defaults.side_px, defaults.side_px) if order.side_px is None else (order.side_px, order.side_px)
    if artist.image is not None and (order.side_px, order.width_px, order.height_px) == (None, None, None):
        usual = _shape(artist.image, defaults.side_px, artist.bundle.unit)
    width, height = order.width_px or usual[0], order.height_px or usual[1]
    check_tokens(width, height, artist.bundle.grids(1, width, height)[0])
    if order.grid:
        check_sheet((width, height), len(order.singles) // len(order.seeds), len(order.seeds))
    order = order.sized(width, height)
    guidance = order.guidance
    if guidance is None and not order.guidances:
        guidance = defaults.guidance
    return replace(order, steps=defaults.steps if order.steps is None else order.steps, guidance=guidance)


def _shape(image: Image.Image, side_px: int, unit: int) -> tuple[int, int]:
    """The size nearest to the picture's shape with about the model's usual number of pixels."""
    scale = side_px / math.sqrt(image.width * image.height)
    width, height = (max(1, round(side * scale / unit)) * unit for side in image.size)
    if max(width, height) > MAX_SIDE_PX:
        said = f"the picture to start from has {image.width}x{image.height} px"
        raise ValueError(f"{said}, a shape that would be drawn {width}x{height}; crop it, or give the --size to draw")
    return width, height


def _images(
    artist: Artist, order: Order, on_step: OnStep | None, on_preview: OnPreview | None, safety: Safety | None
) -> Iterator[Image.Image]:
    loaded, singles = artist.bundle, order.singles
    width, height = (order.width_px or order.side_px or 0), (order.height_px or order.side_px or 0)
    first = None if artist.image is None else _pixels(ImageOps.fit(artist.image, (width, height)))
    steps = len(late([0.0] * ((order.steps or 0) + 1), artist.strength if artist.image else 1.0)) - 1
    grids = loaded.grids(1, width, height)
    for number, single in enumerate(singles):

        def advance(step: int, clean: Tensor, start: int = number * steps) -> None:
            if on_step is not None:
                on_step(start + step + 1, len(singles) * steps)
            if on_preview is not None and step + 1 < steps and step % max(1, steps // PREVIEWS) == 0:
                seen = _image(loaded.pictures(clean, grids, PREVIEW_PX)[0])
                if safety is None or safety.check_image(seen) is None:
                    on_preview(seen)

        image = _image(_pixels_of(loaded, single, (width, height), first, artist.strength, advance))
        check_pictures(safety, [image], f"the picture of {shortened(single.prompts[0])!r} with seed {single.seeds[0]}")
        yield image


def _pixels_of(
    loaded: Pipeline,
    single: Order,
    size: tuple[int, int],
    first: Tensor | None,
    strength: float,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:
    (found,) = loaded.draw(
        single.prompts,
        single.seeds,
        width_px=size[0],
        height_px=size[1],
        steps=single.steps,
        guidance=single.guidance,
        image=first,
        strength=strength,
        negative=single.negative,
        on_step=on_step,
    )
    return found


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())  # 3 H W -> H W 3


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # H W 3 -> 3 H W


def _drawing(artist: Artist, order: Order, wishes: Sequence[str], image: Image.Image) -> Drawing:
    parameters = asdict(order) | {
        "format": FORMAT,
        "program": f"krea-sample {metadata.version('krea-sample')}",
        "wishes": list(wishes),
        **artist.marks,
        "torch": torch.__version__,  # the last bits of a picture depend on these three
        "device": artist.bundle.model.first.weight.device.type,
        "threads": torch.get_num_threads(),
    }
    name = picture.stem((list(wishes) or order.prompts)[0], order.seeds[0])
    return Drawing(image=image, parameters=parameters, stem=f"{name}-grid" if order.grid else name)
