import io

import numpy as np
import pytest
from krea_data.demo.render import BlankError, flatten, picture, rasterise
from PIL import Image, ImageDraw


def ink(image):
    """The box of everything that is not white."""
    box = Image.fromarray((np.asarray(image).min(axis=2) < 250).astype(np.uint8) * 255).getbbox()
    assert box is not None
    return box


def svg(body, box="0 0 32 32"):
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'


def drawn(data):
    return Image.open(io.BytesIO(data))


def test_drawings_fill_the_square_up_to_the_margin_wherever_they_stood():
    for left, top in ((0, 0), (3, 1)):
        body = f'<rect x="{left}" y="{top}" width="28" height="28" fill="#00f"/>'
        image = drawn(picture(64, 0.875, svg(body)))
        assert image.mode == "RGB"
        assert image.size == (64, 64)
        assert ink(image) == pytest.approx((3, 3, 61, 61), abs=1)
        assert image.getpixel((32, 32)) == (0, 0, 255)


def test_sets_with_other_margins_look_alike():
    padded = drawn(picture(64, 0.5, svg('<circle cx="16" cy="16" r="8" fill="#f00"/>')))
    full = drawn(picture(64, 1.0, svg('<circle cx="16" cy="16" r="16" fill="#f00"/>')))
    assert np.abs(np.asarray(padded, dtype=int) - np.asarray(full, dtype=int)).mean() < 2


def test_small_things_stay_small():
    dot = drawn(picture(64, 1.0, svg('<circle cx="16" cy="16" r="4" fill="#f00"/>')))
    left, top, right, bottom = ink(dot)
    assert right - left == pytest.approx(58 * 1.2 * 8 / 32, abs=2)
    assert abs(left + right - 64) <= 1
    assert abs(top + bottom - 64) <= 1


def test_transparent_colours_do_not_bleed():
    image = Image.new("RGBA", (256, 256), (255, 0, 0, 0))  # invisible red around
    ImageDraw.Draw(image).rectangle((64, 64, 191, 191), fill=(0, 0, 0, 255))
    found = np.asarray(flatten(image, 64, 0.5), dtype=int)
    assert (found.max(axis=2) - found.min(axis=2)).max() <= 1


def test_half_transparent_ink_is_mixed_with_white():
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 128))
    assert flatten(image, 64).getpixel((32, 32)) == pytest.approx((127, 127, 127), abs=1)


def test_blank_drawings_are_refused():
    with pytest.raises(BlankError):
        picture(64, 1.0, svg(""))


@pytest.mark.parametrize("text", ["", "no svg", svg("<rect"), "<svg"])
def test_what_is_no_svg_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        rasterise(text, 64)


def test_the_same_drawing_gives_the_same_bytes():
    body = svg('<circle cx="16" cy="16" r="9" fill="#f0f"/>')
    assert picture(64, 0.9, body) == picture(64, 0.9, body)


def test_a_small_thing_on_a_large_page_is_drawn_sharp(tmp_path):
    page = tmp_path / "page.svg"
    body = '<rect x="300" y="500" width="10" height="10" fill="#000"/>'
    page.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="210mm" height="297mm">{body}</svg>')
    image = drawn(picture(64, 0, path=page))
    left, top, right, bottom = ink(image)
    assert (left, top, right, bottom) == pytest.approx((3, 3, 61, 61), abs=1)
    assert np.asarray(image)[5:59, 5:59].max() == 0
