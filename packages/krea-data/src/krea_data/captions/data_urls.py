"""Pictures as they travel to a model: not larger than it looks at, as data URLs."""

import base64
import io

from PIL import Image

__all__ = ["data_url", "shrunk"]


def shrunk(image: Image.Image, longest_px: int) -> Image.Image:
    """The picture as RGB with its longer side at `longest_px` at most; small ones stay as they are."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    scale = longest_px / max(image.size)
    if scale >= 1:
        return image
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)


def data_url(image: Image.Image, longest_px: int, quality: int = 92) -> str:
    """The picture as a data URL: PNG where that is the smaller (drawings are), JPEG else."""
    small = shrunk(image, longest_px)
    files = {"png": io.BytesIO(), "jpeg": io.BytesIO()}
    small.save(files["png"], "PNG")
    small.save(files["jpeg"], "JPEG", quality=quality, subsampling=0)
    kind = min(files, key=lambda name: len(files[name].getvalue()))
    return f"data:image/{kind};base64,{base64.b64encode(files[kind].getvalue()).decode()}"
