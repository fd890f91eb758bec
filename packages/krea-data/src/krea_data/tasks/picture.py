"""From a blob to pixels: upright, 8-bit RGB, on white, or a plain reason why not."""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

__all__ = ["BombError", "BrokenError", "decode", "rgb"]

# What Pillow's readers raise on bytes that are not what they claim to be.
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error)
_UNREADABLE += (EOFError, MemoryError)


class BrokenError(ValueError):
    """The bytes are no picture, or not a whole one."""


class BombError(ValueError):
    """The picture states more pixels than anybody should decode."""


def _depth8(image: Image.Image) -> Image.Image:
    """Pictures of 16 and 32 bits per channel as 8 bits; Pillow's own conversion clips instead of scaling."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8), "L")
    if image.mode == "F":
        raise BrokenError("pixels are floating-point numbers without a stated range")
    return image


def rgb(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as upright RGB, whatever is transparent on white."""
    image = _depth8(ImageOps.exif_transpose(image))
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")


def decode(data: bytes, pixels_limit: int = 64_000_000) -> tuple[Image.Image, str]:
    """The picture as RGB and the name of its format; of an animation the first frame.

    Raises BombError from the header alone if there are more than `pixels_limit` pixels, BrokenError if the bytes are
    not a whole picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > pixels_limit:
                raise BombError(f"{image.width} x {image.height} pixels are over the limit of {pixels_limit}")
            image.load()
            return rgb(image), image.format or ""
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BombError(str(error)) from error
    except (BombError, BrokenError):
        raise
    except _UNREADABLE as error:
        raise BrokenError(f"{type(error).__name__}: {error}") from error
