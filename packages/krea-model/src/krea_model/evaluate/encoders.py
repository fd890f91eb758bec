"""Any torch module as an embedder: the pictures' size and colours as it expects them, in batches."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ModuleEmbedder", "Preparation", "preparation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """Pictures `b 3 H W`, uint8 -> `b 3 h w`, normalised, as image processors of pretrained encoders do it.

    height, width: resized to (bicubic with antialiasing, rounded to whole levels, as Pillow does it); a width of None
    makes `height` the shorter side. crop: side of the middle square that is kept, None for all. mean, std: of the three
    colours, in [0, 1].
    """

    height: int
    width: int | None
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        size = self._size(*images.shape[-2:])
        x = images.float()
        for step in ((x.shape[-2], size[1]), size):  # Pillow rounds after the columns, too
            if step != tuple(x.shape[-2:]):
                x = F.interpolate(x, step, mode="bicubic", antialias=True, align_corners=False)
                x = (x + 0.5).floor().clamp(0, 255)
        if self.crop is not None:
            top, left = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
            x = x[..., top : top + self.crop, left : left + self.crop]
        mean, std = (torch.tensor(row, device=x.device)[:, None, None] for row in (self.mean, self.std))
        return (x / 255 - mean) / std

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.width is not None:
            return self.height, self.width
        longer = int(self.height * max(height, width) / min(height, width))
        return (self.height, longer) if height <= width else (longer, self.height)


@dataclass(frozen=True, slots=True)
class ModuleEmbedder:
    """An `Embedder` from any function of prepared pictures: `prepare`, then `module`, without gradients.

    module: `b 3 h w` -> `b f`; batch: pictures at a time.
    """

    module: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor]
    device: str | torch.device = "cpu"
    batch: int = 32

    @torch.no_grad()
    def __call__(self, images: Tensor, /) -> Tensor:
        parts = [self.module(self.prepare(part.to(self.device))) for part in images.split(self.batch)]
        found = torch.cat(parts).float().cpu()
        if found.ndim != 2 or len(found) != len(images):
            raise ValueError(
                f"the module made {tuple(found.shape)} of {len(images)} pictures; "
                "wrap it so that it gives (pictures, features)"
            )
        return found


def preparation(file: str | Path) -> Preparation:
    """What a `preprocessor_config.json` asks for; ValueError for what is not done here."""
    stated: dict[str, Any] = json.loads(Path(file).read_text())
    size = stated.get("size")
    size = {"shortest_edge": size} if isinstance(size, int) else size or {}
    if "shortest_edge" not in size and not {"height", "width"} <= size.keys():
        raise ValueError(f"{file} has size {size}; only shortest_edge, or height and width, are understood")
    if stated.get("resample", 3) != 3 and stated.get("do_resize", True):
        raise ValueError(f"{file} asks for Pillow's filter {stated['resample']}; only 3, bicubic, is done here")
    crop = stated.get("crop_size") if stated.get("do_center_crop") else None
    crop = crop["height"] if isinstance(crop, dict) else crop
    mean, std = (stated.get(f"image_{name}", [0.5] * 3) for name in ("mean", "std"))
    return Preparation(
        height=size.get("shortest_edge") or size["height"],
        width=None if "shortest_edge" in size else size["width"],
        crop=crop,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )
