"""One picture of many: prompts down, seeds across, labelled."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["check_sheet", "contact_sheet"]

CELL_PX = 128  # smaller pictures are enlarged to this, so that a sheet can be judged by eye
GAP_PX = 6
LABEL_PX = 20


def check_sheet(size: tuple[int, int], rows: int, columns: int) -> None:
    """Raise ValueError, before anything is drawn, for a sheet of more pixels than programs open without a warning."""
    _, _, (width, height) = _layout(size, rows, columns)
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise ValueError(
            f"a sheet of {rows * columns} pictures would have {width}x{height} px; most programs open at most "
            f"{most} pixels: draw fewer or smaller, or leave out --grid"
        )


def contact_sheet(images: Sequence[Image.Image], rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Pictures row by row, all of one size, under the columns' labels and each row under its own label."""
    if len(images) != len(rows) * len(columns):
        raise ValueError(f"{len(images)} pictures do not fill {len(rows)} rows of {len(columns)}")
    (width, height), (step_x, step_y), size = _layout(images[0].size, len(rows), len(columns))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(LABEL_PX - 8)
    for j, label in enumerate(columns):
        draw.text((GAP_PX + j * step_x, 2), fitted(label, width, font), "gray", font)
    for i, label in enumerate(rows):
        top = LABEL_PX + i * step_y
        draw.text((GAP_PX, top + 2), fitted(label, sheet.width - 2 * GAP_PX, font), "black", font)
        for j in range(len(columns)):
            cell = images[i * len(columns) + j].convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(cell, (GAP_PX + j * step_x, top + LABEL_PX))
    return sheet


def _layout(size: tuple[int, int], rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(width, height) of a cell's picture, of the way to the next cell, and of the sheet."""
    scale = max(1, -(-CELL_PX // max(size)))
    width, height = size[0] * scale, size[1] * scale
    step_x, step_y = width + GAP_PX, height + GAP_PX + LABEL_PX
    return (width, height), (step_x, step_y), (GAP_PX + step_x * columns, GAP_PX + LABEL_PX + step_y * rows)


def fitted(label: str, width_px: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The label on one line, cut with an ellipsis where it would not fit."""
    label = " ".join(label.split())
    if font.getlength(label) <= width_px:
        return label
    while label and font.getlength(label + "...") > width_px:
        label = label[:-1]
    return label + "..."
