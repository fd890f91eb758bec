import base64
import gzip
import io

import numpy as np
import pytest
from krea_data.tasks.picture import BrokenError, look
from PIL import Image

pytest.importorskip("resvg_py")

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10">{}</svg>'
USES = "".join(f'<g id="a{n}">' + f'<use href="#a{n - 1}"/>' * 10 + "</g>" for n in range(12))
RED = '<rect width="20" height="10" fill="#f00"/>'


def green():
    """A picture as bytes that is all green."""
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (0, 200, 0)).save(file, "PNG")
    return file.getvalue()


def at(image, x, y):
    """The colour of a pixel."""
    return tuple(np.asarray(image)[y, x].tolist())


def test_svg_is_drawn_with_its_longer_side_as_asked():
    found = look(SVG.format(RED).encode(), svg_px=200)
    assert (found.image.size, found.format) == ((200, 100), "SVG")
    assert at(found.image, 100, 50) == (255, 0, 0)
    half = look(SVG.format('<rect width="10" height="10" fill="#f00"/>').encode())
    assert half.image.size == (1024, 512)
    assert at(half.image, 1000, 256) == (255, 255, 255)
    assert half.notes["alpha"] == 0.5


def test_svg_is_known_by_its_root():
    text = SVG.format(RED)
    prolog = '<?xml version="1.0"?>\n<!-- a <svg> to come -->\n<!DOCTYPE svg PUBLIC "-//W3C" "x" [<!ENTITY a "b">]>\n'
    for data in (
        b"\xef\xbb\xbf" + text.encode(),
        (prolog + text).encode(),
        text.encode("utf-16"),
        gzip.compress(text.encode()),
        b"<s:svg xmlns:s='http://www.w3.org/2000/svg' viewBox='0 0 2 1'>"
        b"<s:rect width='2' height='1' fill='red'/></s:svg>",
        ("<!--" + "long " * 5000 + "-->" + text).encode(),
    ):
        assert at(look(data, svg_px=64).image, 30, 15) == (255, 0, 0)
    with pytest.raises(BrokenError, match="web page"):
        look(b"<!DOCTYPE html><html><svg></svg></html>")


def test_old_headers_in_millimetres_are_drawn():
    text = '<svg xmlns="http://www.w3.org/2000/svg" width="40mm" height="20mm"><rect width="500" height="500"/></svg>'
    assert look(text.encode(), svg_px=100).image.size == (100, 50)


@pytest.mark.parametrize(
    "inside",
    [
        '<image width="20" height="10" href="{}"/>',
        '<image width="20" height="10" xmlns:x="http://www.w3.org/1999/xlink" x:href="{}"/>',
        '<filter id="f"><feImage href="{}"/></filter><rect width="20" height="10" filter="url(#f)"/>',
    ],
)
def test_svg_shows_nothing_from_outside_of_it(tmp_path, inside):
    secret = tmp_path / "secret.png"
    secret.write_bytes(green())
    found = look(SVG.format(inside.format(secret)).encode(), svg_px=64)
    assert (0, 200, 0) not in {colour for _, colour in found.image.getcolors(10_000) or []}
    assert "files outside of it" in found.notes["odd"][0]


def test_pictures_inside_of_an_svg_are_shown():
    inner = base64.b64encode(green()).decode()
    text = SVG.format(
        f'<image width="20" height="10" preserveAspectRatio="none" href="data:image/png;base64,{inner}"/>'
    )
    found = look(text.encode(), svg_px=64)
    assert at(found.image, 30, 15) == (0, 200, 0)
    assert "odd" not in found.notes


def test_text_in_an_svg_is_noted():
    found = look(SVG.format(RED + '<text x="1" y="9">hello</text>').encode())
    assert "without fonts" in found.notes["odd"][0]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (SVG.format(RED).encode()[:-3], "no whole XML"),
        (gzip.compress(SVG.format(RED).encode())[:-12], "cut short or damaged"),
        (SVG.format(USES).encode(), "repeats"),
        (b"<svg>&nothing;</svg>", "no whole XML"),
        (("<svg xmlns='http://www.w3.org/2000/svg'>" + "<g>" * 100_000).encode(), "SVG"),
    ],
    ids=["cut", "cut gz", "bomb of uses", "entity", "deep"],
)
def test_svg_that_cannot_be_drawn_is_refused_in_words(data, said):
    with pytest.raises(BrokenError, match=said):
        look(data)


def test_svg_that_uses_itself_ends():
    look(SVG.format('<g id="a"><use href="#a"/></g><use href="#b"/><g id="b"><use href="#a"/></g>').encode(), svg_px=64)


def test_svg_of_any_stated_size_is_drawn_within_the_limit():
    size = 'width="60000" height="60000"'
    text = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><rect {size}/></svg>'
    assert look(text.encode(), pixels_limit=10_000).image.size == (100, 100)
