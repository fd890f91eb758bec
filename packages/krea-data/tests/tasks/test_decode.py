import io
import struct
import zlib

import pytest
from krea_data.tasks.decode import Decode
from krea_data.tasks.picture import BombError, decode
from PIL import Image

BIG = (60_000, 60_000)


def png_header(width, height):
    """A PNG that states its size and has next to nothing behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def drop(blobs, row, **limits):
    return Decode(blobs=blobs, **limits)([row])[0].drop


def test_a_good_picture_is_kept_with_its_numbers(blobs, stored):
    (result,) = Decode(blobs=blobs)([stored(Image.new("RGB", (80, 40)))])
    assert result.drop is None
    assert result.value["width"] == 80
    assert result.value["height"] == 40
    assert result.value["aspect"] == 2.0
    assert result.value["format"] == "PNG"


@pytest.mark.parametrize("size", [(31, 60), (60, 31)])
def test_small_pictures_go(blobs, stored, size):
    assert drop(blobs, stored(Image.new("RGB", size))) == "small"
    assert drop(blobs, stored(Image.new("RGB", size)), least_px=31) is None


def test_long_pictures_go(blobs, stored):
    assert drop(blobs, stored(Image.new("RGB", (32, 97)))) == "aspect"
    assert drop(blobs, stored(Image.new("RGB", (32, 96)))) is None


def whole(form):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is a text file named .png",
        b"\x89PNG\r\n\x1a\n",
        whole("JPEG")[:-400],
        whole("PNG")[:-400],
        b"GIF89a",
    ],
    ids=["zero bytes", "text", "only the magic", "cut jpeg", "cut png", "only a gif header"],
)
def test_broken_files_go_one_by_one(blobs, stored, data):
    good, bad = stored(Image.new("RGB", (40, 40)), "test/good"), stored(data, "test/bad")
    results = Decode(blobs=blobs)([good, bad, good])
    assert [result.drop for result in results] == [None, "broken", None]
    assert results[1].value["error"]


@pytest.mark.parametrize("size", [BIG, (10_000, 10_000), (20_000, 5_000)])
def test_bombs_are_refused_by_their_header(blobs, stored, size):
    assert drop(blobs, stored(png_header(*size))) == "bomb"


def test_the_limit_of_a_bomb_can_be_chosen():
    with pytest.raises(BombError, match="over the limit of 4095"):
        decode(whole("PNG"), pixels_limit=64 * 64 - 1)


def test_a_missing_blob_is_no_broken_picture(blobs, stored):
    row = stored(Image.new("RGB", (40, 40)))
    blobs._blobs.clear()
    with pytest.raises(KeyError):
        Decode(blobs=blobs)([row])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_modes_become_rgb(mode):
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    source = Image.new("L", (40, 40), 255).convert(mode) if mode != "I;16" else Image.new(mode, (40, 40), 65535)
    file = io.BytesIO()
    source.save(file, form)
    image, _ = decode(file.getvalue())
    assert image.mode == "RGB"
    assert image.getpixel((20, 20)) == (255, 255, 255)


def test_what_is_transparent_is_white(blobs, stored):
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 10, 30, 30))
    found, _ = decode(blobs.get(stored(image).blob))
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((20, 20)) == (255, 0, 0)


def test_pictures_stand_upright():
    image = Image.new("RGB", (60, 40))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert decode(file.getvalue())[0].size == (40, 60)


def test_limits_are_checked(blobs):
    with pytest.raises(ValueError, match="aspect_limit 0"):
        Decode(blobs=blobs, aspect_limit=0)
