"""Draw pictures to square PNGs on white, filled alike over styles."""

import io
import math
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from krea_data.demo.clipart import with_viewbox

__all__ = ["BlankError", "flatten", "picture", "rasterise", "renderer"]

_MARGIN = 3 / 64  # of the side, on each side
_GROW = 1.2  # small things stay small: a dot is not blown up to a disc
_VISIBLE = 8  # of 255: fainter than this does not count for the box of a drawing
_OVERSAMPLE = 3


class BlankError(ValueError):
    """Nothing visible was drawn."""


def renderer() -> Callable[..., bytes]:
    """resvg's function from SVG to PNG; ImportError names the extra that brings it."""
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError("drawing the demo corpus needs resvg-py: pip install 'krea-data[demo]'") from error
    return resvg_py.svg_to_bytes


def rasterise(svg: str, side_px: int) -> Image.Image:
    """An SVG text as an RGBA picture whose longer side is `side_px`; ValueError if it cannot be drawn."""
    data = renderer()(svg_string=svg, width=side_px, height=side_px, skip_system_fonts=True)
    return Image.open(io.BytesIO(data)).convert("RGBA")


def flatten(image: Image.Image, side_px: int, extent: float = 1.0) -> Image.Image:
    """An RGBA picture as RGB on a white square of `side_px`, its drawing centred and scaled to fill up to a margin.

    `extent` is the longer side of a usual drawing as a share of the canvas; a drawing is enlarged at most 1.2 times
    more than a usual one, so that sizes which carry meaning survive. Raises BlankError if nothing is visible.
    """
    box = image.getchannel("A").point([255 * (value >= _VISIBLE) for value in range(256)]).getbbox()
    if box is None:
        raise BlankError("nothing visible was drawn")
    left, top, right, bottom = box
    longest = max(right - left, bottom - top)
    canvas = max(image.size)
    drawn = max(longest, canvas * extent / _GROW)
    window = drawn / (1 - 2 * _MARGIN)  # side of the square of the source that becomes the picture
    # flattened before it is scaled: the same as scaling with premultiplied alpha, since weights sum to one
    side = math.ceil(window) + 2
    x, y = (side - (right - left)) // 2, (side - (bottom - top)) // 2
    white = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    white.alpha_composite(image.crop(box), (x, y))
    x, y = x + (right - left - window) / 2, y + (bottom - top - window) / 2
    square = (x, y, x + window, y + window)
    return white.convert("RGB").resize((side_px, side_px), Image.Resampling.HAMMING, box=square)


def _zoomed(svg: str, image: Image.Image) -> str:
    """The SVG with its view box cut to what was visible in its rendering `image`: a small thing on a large page."""
    box = image.getchannel("A").getbbox()
    found = re.search(r'viewBox="([^"]*)"', svg)
    if box is None or found is None or max(box[2] - box[0], box[3] - box[1]) > 0.6 * max(image.size):
        return svg
    x, y, width, height = (float(value) for value in re.split(r"[\s,]+", found.group(1).strip()))
    unit = max(width, height) / max(image.size)
    x, y = x - (image.width * unit - width) / 2, y - (image.height * unit - height) / 2  # it was drawn centred
    cut = (x + (box[0] - 1) * unit, y + (box[1] - 1) * unit)
    size = ((box[2] - box[0] + 2) * unit, (box[3] - box[1] + 2) * unit)
    return f"{svg[: found.start(1)]}{' '.join(f'{value:.6g}' for value in (*cut, *size))}{svg[found.end(1) :]}"


def picture(side_px: int, extent: float, svg: str | None = None, path: Path | None = None) -> bytes:
    """The PNG bytes of an SVG text or of a picture file; the same bytes for the same versions of the libraries.

    An extent of 0 means that the canvas says nothing: the drawing fills the picture however small it was.
    """
    if svg is None:
        assert path is not None
        svg = path.read_text("utf-8", errors="replace") if path.suffix == ".svg" else None
    if svg is not None:
        svg = svg if extent else with_viewbox(svg)
        image = rasterise(svg, _OVERSAMPLE * side_px)
        if not extent and (cut := _zoomed(svg, image)) != svg:
            image = rasterise(cut, _OVERSAMPLE * side_px)
    else:
        assert path is not None
        image = Image.open(path).convert("RGBA")
    file = io.BytesIO()
    flatten(image, side_px, extent).save(file, "PNG", compress_level=6)
    return file.getvalue()
