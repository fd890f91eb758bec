"""Pictures of a model in training: prompts against seeds on one sheet, the same noise after every stage."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from krea_model.interfaces import Conditioning, TextEncoder
from krea_model.mmdit import MMDiT
from krea_model.packing import unpack
from krea_model.sampling import noise, sample
from krea_model.smallae import SmallAutoencoder
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from krea_launcher.encode import autocast_dtype

__all__ = ["draw", "sheet"]

BATCH = 32


def draw(
    model: MMDiT,
    text: TextEncoder,
    autoencoder: SmallAutoencoder,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    side_px: int,
    steps: int,
    guidance: float,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Pictures `b 3 H W`, uint8; each depends on its own prompt and seed alone."""
    dtype = autocast_dtype()
    parts = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        cells = side_px // autoencoder.compression // model.config.patch
        grids = [(cells, cells)] * len(part)
        seed = seeds[start : start + BATCH]
        x = noise(seed, grids, model.config.token_features, patch=model.config.patch)
        empty: Conditioning = text([""] * len(part))
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            x = sample(model, x, text(part), grids, steps=steps, mu=0.0, guidance=guidance, uncond=empty)
        images = autoencoder.decode(torch.stack(unpack(x.float(), grids, model.config.patch)))
        parts.append(((images + 1) * 127.5).round().clamp(0, 255).byte())
        on_progress(min(start + BATCH, len(prompts)), len(prompts))
    return torch.cat(parts)


def sheet(
    rows: Sequence[tuple[str, Sequence[Tensor]]],
    references: Mapping[str, Tensor],
    *,
    remarks: Mapping[str, str] | None = None,
    note: str = "",
) -> Image.Image:
    """A picture of rows: a caption, the corpus's own picture if there is one, then the samples (`3 H W`, uint8).

    remarks: small words under some captions; note: a line under all rows.
    """
    side, words = 64, 190
    large, small = ImageFont.load_default(13), ImageFont.load_default(11)
    columns = max(len(images) for _, images in rows)
    width, height = words + (columns + 1) * (side + 4), len(rows) * (side + 4) + (18 if note else 0)
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for row, (caption, images) in enumerate(rows):
        top = row * (side + 4)
        lines = _wrapped(caption)
        for line, part in enumerate(lines):
            pen.text((6, top + 12 + 15 * line), part, fill="black", font=large)
        pen.text((6, top + 13 + 15 * len(lines)), (remarks or {}).get(caption, ""), fill="#8a5a00", font=small)
        if caption in references:
            canvas.paste(_scaled(references[caption], side), (words, top))
            pen.rectangle((words, top, words + side - 1, top + side - 1), outline="#999999")
        for column, image in enumerate(images):
            canvas.paste(_scaled(image, side), (words + (column + 1) * (side + 4), top))
    if note:
        pen.text((6, height - 16), note, fill="#666666", font=small)
    return canvas


def _scaled(image: Tensor, side: int) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _wrapped(text: str, width: int = 27) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
