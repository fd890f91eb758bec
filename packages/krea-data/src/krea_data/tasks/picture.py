"""From a blob to pixels: upright, 8-bit sRGB, on white, or a plain reason why not."""

import functools
import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from krea_data.tasks.profiles import to_srgb
from krea_data.tasks.unreadable import why
from krea_data.tasks.vector import SvgError, draw, is_svg

__all__ = ["BombError", "BrokenError", "Picture", "decode", "formats", "look", "rgb"]

# What Pillow's readers raise on bytes that are not what they claim to be, mistakes of the readers included.
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error)
_UNREADABLE += (EOFError, MemoryError, AssertionError, AttributeError, RuntimeError, BufferError)
# EPS is a program that Pillow hands to Ghostscript; the others are names that Pillow knows without a reader.
_REFUSED = frozenset({"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"})
_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
_LAYERS = "PSD"  # what Pillow counts there are layers, not frames


class BrokenError(ValueError):
    """The bytes are no picture, or not a whole one."""


class BombError(ValueError):
    """The picture states more pixels than anybody should decode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What came out of a blob. `notes` tell what is lost in `image`, only where there is something to tell:

    frames (more than one), alpha (share of pixels that were not opaque), mode (of the pixels, unless 8-bit RGB),
    orientation (EXIF, if not upright), profile (the colour profile that was converted from), and `odd`: sentences on
    what could not be read beside the pixels.
    """

    image: Image.Image
    format: str
    notes: Mapping[str, Any] = field(default_factory=dict)


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats of Pillow that are decoded here; SVG comes on top."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _REFUSED)


def _depth8(image: Image.Image) -> Image.Image:
    """Pictures of 16 and 32 bits per channel as 8 bits; Pillow's own conversion clips instead of scaling."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image, dtype=np.float64)
        step = 257 if image.mode != "I" or values.size == 0 or values.max() <= 65535 else (2**31 - 1) / 255
        grey = Image.fromarray((values / step).round().clip(0, 255).astype(np.uint8))
        return _cut_out(grey, values, image.info)
    if image.mode == "F":
        raise BrokenError("pixels are floating-point numbers without a stated range")
    return image


def _cut_out(grey: Image.Image, values: np.ndarray, info: Mapping[Any, Any]) -> Image.Image:
    """A grey picture with the profile it had, and transparent where the deep one had its transparent value."""
    clear = info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if profile := info.get("icc_profile"):
        grey.info["icc_profile"] = profile
    return grey


def _upright(image: Image.Image, notes: dict[str, Any]) -> Image.Image:
    try:
        turned = image.getexif().get(0x0112, 1)
        if turned == 1:
            return image
        upright = ImageOps.exif_transpose(image)
    except _UNREADABLE:
        _odd(notes, "its EXIF block cannot be read, so it may not stand upright")
        return image
    notes["orientation"] = turned
    return upright


def _odd(notes: dict[str, Any], sentence: str) -> None:
    notes["odd"] = [*notes.get("odd", []), sentence]


def _share(alpha: Image.Image) -> float:
    pixels = alpha.width * alpha.height
    return round(1 - alpha.histogram()[255] / pixels, 4) if pixels else 0.0


def _flat(image: Image.Image, notes: dict[str, Any]) -> Image.Image:
    """As sRGB without alpha; what is transparent becomes white."""
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if share := _share(alpha):
            notes["alpha"] = share
    elif image.mode == "P":
        image = image.convert("RGB")
    if isinstance(profile, bytes) and profile:
        image = to_srgb(image, profile, notes, lambda said: _odd(notes, said))
    if alpha is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode != "RGBA":
        image.putalpha(alpha)
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    return white.convert("RGB")


def rgb(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as upright sRGB, whatever is transparent on white."""
    return _as_rgb(image, {})


def _as_rgb(image: Image.Image, notes: dict[str, Any]) -> Image.Image:
    if image.mode != "RGB":
        notes["mode"] = image.mode
    return _flat(_depth8(_upright(image, notes)), notes)


def _frames(data: bytes, image: Image.Image, notes: dict[str, Any]) -> None:
    count = vars(image).get("n_frames", 1)  # some headers tell; for the others one has to walk, which moves the picture
    if "n_frames" not in vars(image) and hasattr(type(image), "n_frames") and image.format != _LAYERS:
        try:
            with Image.open(io.BytesIO(data), formats=[image.format or ""]) as again:
                count = int(getattr(again, "n_frames", 1))
        except _UNREADABLE:
            _odd(notes, "its frames cannot be counted: a later one is broken")
    if count > 1:
        notes["frames"] = count


def _drawn(data: bytes, pixels_limit: int, svg_px: int) -> Picture:
    notes: dict[str, Any] = {}
    try:
        drawn = draw(data, min(svg_px, int(pixels_limit**0.5)), lambda said: _odd(notes, said))
    except SvgError as error:
        raise BrokenError(str(error)) from error
    return Picture(image=_flat(drawn, notes), format="SVG", notes=notes)


def _opened(data: bytes, pixels_limit: int) -> Picture:
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        if image.width * image.height > pixels_limit:
            raise BombError(f"{image.width} x {image.height} pixels are over the limit of {pixels_limit}")
        image.load()
        notes: dict[str, Any] = {}
        _frames(data, image, notes)
        return Picture(image=_as_rgb(image, notes), format=image.format or "", notes=notes)


def look(data: bytes, pixels_limit: int = 64_000_000, svg_px: int = 1024) -> Picture:
    """The picture with its format and what there is to note; of an animation the first frame.

    An SVG is drawn with its longer side at `svg_px`. Raises BombError from the header alone if there are more than
    `pixels_limit` pixels (or twice `PIL.Image.MAX_IMAGE_PIXELS`), BrokenError with the reason in words if the bytes
    are not a whole picture, and nothing else but ImportError where drawing needs a package that is not here.
    """
    try:
        if is_svg(data):
            return _drawn(data, pixels_limit, svg_px)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # what is odd is noted
            pillows = pixels_limit > (Image.MAX_IMAGE_PIXELS or 0)
            warnings.simplefilter("ignore" if pillows else "error", Image.DecompressionBombWarning)
            return _opened(data, pixels_limit)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BombError(str(error)) from error
    except (BombError, BrokenError):
        raise
    except _UNREADABLE as error:
        raise BrokenError(why(data, error)) from error


def decode(data: bytes, pixels_limit: int = 64_000_000) -> tuple[Image.Image, str]:
    """The picture as sRGB and the name of its format; see `look`."""
    found = look(data, pixels_limit)
    return found.image, found.format
