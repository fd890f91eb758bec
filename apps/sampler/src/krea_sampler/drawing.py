"""An order and an artist in, finished pictures with their parameters out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from krea_model import bundle
from krea_model.bundle import Bundle
from PIL import Image

from krea_sampler import picture
from krea_sampler.compose import Artist
from krea_sampler.order import FORMAT, Order
from krea_sampler.sheet import contact_sheet

__all__ = ["Drawing", "OnStep", "difference", "draw"]

OnStep = Callable[[int, int], None]
"""Called with the steps done so far and the steps of the whole order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A finished picture, its parameters, and the name of the file that it goes to unless somebody says otherwise."""

    image: Image.Image
    parameters: dict[str, Any]
    stem: str


def draw(artist: Artist, order: Order, wishes: Sequence[str] = (), on_step: OnStep | None = None) -> Iterator[Drawing]:
    """Draw one picture per prompt and seed, handed over as each is done, or one contact sheet of them all.

    Every picture is drawn by itself, so that it is the same to the last bit whatever else this call draws.
    `wishes` are the prompts as they were typed, where the order holds their expansions.
    """
    order = _settled(artist.bundle, order)
    images = _images(artist.bundle, order, on_step)
    if order.grid:
        sheet = contact_sheet(list(images), order.prompts, [f"seed {seed}" for seed in order.seeds])
        yield _drawing(artist, order, wishes, sheet)
        return
    typed = dict(zip(order.prompts, wishes, strict=False))
    for (prompt, seed), image in zip(order.pictures, images, strict=True):
        single = replace(order, prompts=(prompt,), seeds=(seed,))
        yield _drawing(artist, single, [typed[prompt]] if prompt in typed else [], image)


def difference(path: Path, drawn: Image.Image) -> int:
    """The largest difference of any value (0 to 255) between the picture at `path` and a drawn one; 0 is identical."""
    before, after = (np.asarray(image.convert("RGB"), dtype=int) for image in (picture.pixels(path), drawn))
    return int(np.abs(before - after).max()) if before.shape == after.shape else 255


def _settled(loaded: Bundle, order: Order) -> Order:
    """The order with the model's defaults in place of None."""
    defaults = loaded.defaults
    return replace(
        order,
        steps=defaults.steps if order.steps is None else order.steps,
        guidance=defaults.guidance if order.guidance is None else order.guidance,
        side_px=defaults.side_px if order.side_px is None else order.side_px,
    )


def _images(loaded: Bundle, order: Order, on_step: OnStep | None) -> Iterator[Image.Image]:
    steps = order.steps or 0
    total = steps * len(order.pictures)
    for number, (prompt, seed) in enumerate(order.pictures):

        def advance(step: int, *_: object, start: int = number * steps) -> None:
            if on_step is not None:
                on_step(start + step + 1, total)

        with _memory_explained(order):
            pixels = bundle.draw(
                loaded,
                [prompt],
                [seed],
                steps=order.steps,
                guidance=order.guidance,
                side_px=order.side_px,
                on_step=advance,
            )
        yield Image.fromarray(pixels[0].permute(1, 2, 0).cpu().numpy())  # 3 H W -> H W 3


@contextmanager
def _memory_explained(order: Order) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in text:
            raise MemoryError(f"not enough memory for a side of {order.side_px} px; use a smaller --side-px") from error
        raise


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
