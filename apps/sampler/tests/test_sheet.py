"""Contact sheets: every picture at its place, labels that fit."""

import pytest
from krea_sampler.sheet import check_sheet, contact_sheet, fitted
from PIL import Image, ImageFont

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250)]


def test_every_picture_is_where_its_labels_say() -> None:
    images = [Image.new("RGB", (64, 64), colour) for colour in COLOURS]
    sheet = contact_sheet(images, ["first", "second"], ["seed 0", "seed 1", "seed 2"])
    width, height = sheet.size
    for i in range(2):
        for j in range(3):
            centre = (int((j + 0.5) * width / 3), 16 + int((i + 0.5) * (height - 16) / 2))
            assert sheet.getpixel(centre) == COLOURS[3 * i + j]
    assert width > 3 * 128  # small pictures are enlarged
    assert height > 2 * 128


def test_a_missing_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 pictures do not fill 2 rows of 1"):
        contact_sheet([Image.new("RGB", (8, 8))], ["a", "b"], ["c"])


def test_a_sheet_that_pillow_would_warn_of_is_refused_before_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = contact_sheet([Image.new("RGB", (200, 140))] * 6, ["a", "b"], ["c", "d", "e"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", sheet.width * sheet.height)
    check_sheet((200, 140), 2, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", sheet.width * sheet.height - 1)
    with pytest.raises(ValueError, match=f"a sheet of 6 pictures would have {sheet.width}x{sheet.height} px"):
        check_sheet((200, 140), 2, 3)


def test_long_labels_are_cut_to_their_width() -> None:
    font = ImageFont.load_default(12)
    assert fitted("short", 100, font) == "short"
    cut = fitted("a very long prompt " * 10, 100, font)
    assert cut.endswith("...")
    assert 60 < font.getlength(cut) <= 100
