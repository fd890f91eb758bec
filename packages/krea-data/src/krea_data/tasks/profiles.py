"""Colours as they were meant: from the colour profile in a picture (ICC) to sRGB."""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageCms

__all__ = ["to_srgb"]

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # of the pixels that a profile is about
_CLOSE = 3  # of 255: a profile that changes no colour by more is sRGB, and is left alone
_FAILED = (ImageCms.PyCMSError, OSError, ValueError, TypeError, RuntimeError, SyntaxError)


def to_srgb(image: Image.Image, profile: bytes, notes: dict[str, Any], odd: Callable[[str], None]) -> Image.Image:
    """The picture in RGB with sRGB's colours, or as it is where the profile is of no use, which `odd` is told.

    `notes["profile"]` names the profile that was converted from. Alpha is not kept.
    """
    try:
        name, space, transform = _transform(profile)
    except _FAILED:
        odd("its colour profile cannot be read; the colours are taken for sRGB")
        return image
    wanted = _MODES.get(space, "")
    if not _fits(notes.get("mode", "RGB"), wanted):
        odd(f"its colour profile is for {space}, which its pixels are not; the colours are taken for sRGB")
        return image
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image if image.mode == wanted else image.convert(wanted), transform)
    if converted is None:  # only what was asked to be changed in place
        return image
    notes["profile"] = name
    return converted


def _fits(mode: str, wanted: str) -> bool:
    """Whether pixels that came in this mode may be what a profile of the mode `wanted` is about."""
    grey = mode in ("1", "L", "LA", "La") or mode.startswith("I")
    if wanted == "L":
        return grey
    if wanted in ("CMYK", "LAB"):
        return mode == wanted
    return wanted == "RGB" and mode not in ("CMYK", "LAB")


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes) -> tuple[str, str, ImageCms.ImageCmsTransform | None]:
    """The profile's name, what its pixels are, and the way from them to sRGB: None if they are sRGB already."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    core: Any = opened.profile
    space = core.xcolor_space.strip()
    name = " ".join(str(core.profile_description or "unnamed").replace("\0", "").split())[:80]
    mode = _MODES.get(space)
    if mode is None:
        return name, space, None
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    return name, space, None if mode == "RGB" and _changes_nothing(transform) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(27, 27, 3)
    converted = ImageCms.applyTransform(Image.fromarray(colours), transform)
    moved = np.abs(np.asarray(converted).astype(np.int16) - colours.astype(np.int16))
    return int(moved.max()) <= _CLOSE
