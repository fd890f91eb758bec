"""Small pictures inside a page: an `img` element that needs no file beside it."""

import base64
import io
from html import escape

from PIL import Image

__all__ = ["thumbnail"]


def thumbnail(image: Image.Image, caption: str, side_px: int) -> str:
    """The picture with its longer side at most `side_px`, as HTML; the caption is shown to who points at it."""
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=70)
    data = base64.b64encode(buffer.getvalue()).decode()
    words = escape(caption)
    return f'<img src="data:image/webp;base64,{data}" alt="{words}" title="{words}" loading="lazy">'
