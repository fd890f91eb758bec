"""Any torch module as an embedder: the pictures' size and colours as it expects them, in batches."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from krea_model.damage import read_object
from krea_model.devices import place
from krea_model.plain import is_number, is_whole

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

    def __post_init__(self) -> None:
        place(self.device)
        if not is_whole(self.batch, 1):
            raise ValueError(f"batch is {self.batch!r}; give how many pictures to look at together, at least 1")

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
    if not Path(file).is_file():
        raise ValueError(f"{file} does not exist; give the preprocessor_config.json of the encoder")
    stated = read_object(Path(file))
    size: Any = stated.get("size")
    size = {"shortest_edge": size} if is_whole(size) else size if isinstance(size, dict) else {}
    single = size.get("shortest_edge") is not None
    if not single and not {"height", "width"} <= size.keys():
        raise ValueError(
            f"{file} has size {stated.get('size')}; only shortest_edge, or height and width, are understood"
        )
    if stated.get("resample", 3) != 3 and stated.get("do_resize", True):
        raise ValueError(f"{file} asks for Pillow's filter {stated['resample']}; only 3, bicubic, is done here")
    crops = bool(stated.get("do_center_crop")) and stated.get("crop_size") is not None
    crop: Any = stated["crop_size"] if crops else None
    crop = crop.get("height") if isinstance(crop, dict) else crop
    height: Any = size["shortest_edge" if single else "height"]
    width: Any = None if single else size["width"]
    sides = [height, *([] if single else [width]), *([crop] if crops else [])]
    if not all(is_whole(side, 1) for side in sides) or (crops and crop > min(height, width or height)):
        raise ValueError(f"{file} has sides {sides}; they must be whole numbers, and a crop no larger than the picture")
    mean, std = _colours(stated, "image_mean", file), _colours(stated, "image_std", file, above=0)
    return Preparation(height=height, width=width, crop=crop, mean=mean, std=std)


def _colours(
    stated: Mapping[str, Any], name: str, file: str | Path, above: float = -math.inf
) -> tuple[float, float, float]:
    values = stated.get(name, [0.5] * 3)
    if not isinstance(values, list) or len(values) != 3 or not all(is_number(value, above) for value in values):
        more = "" if above < 0 else f" above {above:g}"
        raise ValueError(f"{file} has {name} {values}; it must hold a number{more} for each of the three colours")
    return values[0], values[1], values[2]
