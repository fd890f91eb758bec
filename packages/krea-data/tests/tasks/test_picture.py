import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_data.tasks.decode import Decode
from krea_data.tasks.picture import BombError, BrokenError, decode, formats, look
from PIL import Image, ImageCms, ImageOps

pytest.importorskip("resvg_py")

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10">{}</svg>'
RED = '<rect width="20" height="10" fill="#f00"/>'


def written(image, form, **more):
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def gradient(mode="RGB", size=(48, 36)):
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))
    return image.convert(mode)


def far(one, other):
    """The largest difference between two pictures in any channel."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def at(image, x, y):
    """The colour of a pixel."""
    return tuple(np.asarray(image)[y, x].tolist())


# Every format that Pillow writes as well as reads, and how far its loss may go.
EXACT = ("PNG", "BMP", "TIFF", "TGA", "PPM", "PCX", "DIB", "SGI", "ICO")
LOSSY = ("JPEG", "WEBP", "AVIF", "JPEG2000", "GIF")


@pytest.mark.parametrize("form", [*EXACT, *LOSSY])
def test_every_format_comes_as_rgb(form):
    image = gradient(size=(64, 64) if form == "ICO" else (48, 36))
    more = {"quality": 95} if form in ("JPEG", "WEBP", "AVIF") else {}
    found = look(written(image, form, **more))
    assert (found.image.mode, found.image.size) == ("RGB", image.size)
    assert found.format == form
    assert far(found.image, image) <= (0 if form in EXACT else 60)


def test_programs_and_names_without_a_reader_are_not_opened():
    assert not {"EPS", "MPEG", "HDF5"} & set(formats())
    assert {"AVIF", "WEBP", "TIFF", "JPEG2000", "PSD", "DDS", "QOI"} <= set(formats())
    data = written(gradient(), "EPS")
    with pytest.raises(BrokenError, match="PostScript program, which is not run"):
        decode(data)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_stands_upright(turn):
    image = gradient(size=(48, 32))
    exif = image.getexif()
    exif[0x0112] = turn
    stored = ImageOps.exif_transpose(_with(image, {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(turn, 1)))
    found = look(written(stored, "PNG", exif=exif))
    assert found.image.size == (48, 32)
    assert far(found.image, image) == 0
    assert found.notes.get("orientation") == (turn if turn > 1 else None)


def _with(image, turn):
    image = image.copy()
    image.getexif()[0x0112] = turn
    return image


def test_a_broken_exif_block_does_not_cost_the_picture():
    data = written(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert look(data).image.size == (48, 36)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_deep_grey_is_scaled_and_not_clipped(mode):
    values = np.linspace(0, 65535, 40 * 40).reshape(40, 40)
    if mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    else:
        image = Image.frombytes(mode, (40, 40), values.astype("<u2" if mode == "I;16" else ">u2").tobytes())
    found = look(written(image, "TIFF"))
    assert far(found.image.getchannel(0), (values / 257).round()) <= 1
    assert found.notes["mode"].startswith("I")


def test_very_deep_grey_is_scaled_by_its_own_range():
    values = np.linspace(0, 2**31 - 1, 64 * 64).reshape(64, 64)
    found = look(written(Image.fromarray(values.astype(np.int32)), "TIFF"))
    assert far(found.image.getchannel(0), (values / (2**31 - 1) * 255).round()) <= 1


def deep_png(kind, values):
    """A PNG of 16 bits per channel; Pillow writes none in colour."""
    height, width, _ = values.shape

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2), (0, 1)])
def test_deep_pngs_of_every_kind_are_scaled(kind, channels):
    values = np.repeat(np.linspace(0, 65535, 40 * 40).reshape(40, 40, 1), channels, axis=2)
    if kind in (4, 6):
        values[..., -1] = 65535
    found = decode(deep_png(kind, values))[0]
    assert far(found.getchannel(0), values[..., 0] / 257) <= 1


def test_floating_point_pictures_are_refused_in_words():
    with pytest.raises(BrokenError, match="floating-point"):
        decode(written(Image.new("F", (40, 40), 0.5), "TIFF"))


def test_cmyk_is_read_the_right_way_round():
    image = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    for form in ("JPEG", "TIFF"):
        found = look(written(image, form))
        assert far(found.image, Image.new("RGB", (40, 40), (255, 0, 0))) <= 3
        assert found.notes["mode"] == "CMYK"


@pytest.mark.parametrize("mode", ["P", "L", "LA", "1", "RGBA", "PA"])
def test_palettes_and_grey_are_noted(mode):
    source = gradient("RGBA" if mode == "PA" else mode) if mode != "PA" else gradient("P").convert("PA")
    found = look(written(source, "PNG")) if mode != "PA" else look(written(gradient("P"), "GIF"))
    assert found.image.mode == "RGB"
    assert "alpha" not in found.notes
    assert far(found.image, source.convert("RGB")) == 0


def test_alpha_is_flattened_on_white_and_noted():
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    image.paste((255, 0, 0, 128), (0, 0, 40, 20))
    image.paste((255, 0, 0, 255), (0, 0, 40, 10))
    for form in ("PNG", "WEBP", "TIFF"):
        found = look(written(image, form, **({"lossless": True} if form == "WEBP" else {})))
        assert found.notes["alpha"] == 0.75
        assert [at(found.image, 20, y) for y in (5, 15, 35)] == [(255, 0, 0), (255, 127, 127), (255, 255, 255)]
    grey = written(Image.new("L", (40, 40), 9), "PNG", transparency=9)
    assert at(look(grey).image, 0, 0) == (255, 255, 255)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_of_animations_the_first_frame_counts_and_the_others_are_counted(form):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue", "white")]
    found = look(written(frames[0], form, save_all=True, append_images=frames[1:], duration=50))
    assert far(found.image, frames[0]) <= 4
    assert found.notes["frames"] == 4


def test_an_animation_that_breaks_later_keeps_its_first_frame():
    frames = [Image.effect_noise((60, 60), 90).convert("RGB") for _ in range(4)]
    data = written(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    found = look(data[: len(data) // 2])
    assert far(found.image, frames[0]) == 0
    assert "frames cannot be counted" in found.notes["odd"][0]


def swapped():
    """An RGB profile whose red is sRGB's green, so that using it cannot be missed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    entries = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_colour_profiles_are_converted_from(form):
    image = Image.new("RGB", (40, 40), (250, 10, 10))
    found = look(written(image, form, icc_profile=swapped()))
    red, green, _ = at(found.image, 20, 20)
    assert red < 40
    assert green > 230
    assert found.notes["profile"]
    assert at(look(written(image, form)).image, 20, 20)[0] > 230


def test_the_srgb_profile_changes_nothing():
    image = gradient()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = look(written(image, "PNG", icc_profile=profile))
    assert far(found.image, image) == 0
    assert "profile" not in found.notes


def test_profiles_work_with_alpha_palettes_and_grey():
    image = Image.new("RGBA", (40, 40), (250, 10, 10, 255))
    image.paste((0, 0, 0, 0), (0, 0, 40, 20))
    found = look(written(image, "PNG", icc_profile=swapped()))
    assert at(found.image, 20, 5) == (255, 255, 255)
    assert at(found.image, 20, 35)[1] > 230
    palette = Image.new("RGB", (40, 40), (250, 10, 10)).quantize(4)
    assert at(look(written(palette, "PNG", icc_profile=swapped())).image, 20, 20)[1] > 230
    grey = look(written(Image.new("L", (40, 40), 100), "PNG", icc_profile=swapped()))
    assert far(grey.image, Image.new("RGB", (40, 40), (100, 100, 100))) <= 2


@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 200, swapped()[:300]], ids=["text", "zeros", "cut"])
def test_a_profile_that_cannot_be_read_is_noted(profile):
    found = look(written(gradient(), "PNG", icc_profile=profile))
    assert far(found.image, gradient()) == 0
    assert "colour profile cannot be read" in found.notes["odd"][0]


def test_a_profile_of_another_kind_is_noted():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    found = look(written(gradient(), "PNG", icc_profile=lab))
    assert far(found.image, gradient()) == 0
    assert "which its pixels are not" in found.notes["odd"][0]
    cmyk = look(written(Image.new("CMYK", (40, 40)), "JPEG", icc_profile=swapped()))
    assert "which its pixels are not" in cmyk.notes["odd"][0]


def grey_profile(gamma):
    """A grey profile of this gamma, put together by hand: Pillow makes none."""

    def tag(kind, body):
        return kind + b"\0\0\0\0" + body + b"\0" * (-len(body) % 4)

    fixed = [struct.pack(">i", round(value * 65536)) for value in (0.9642, 1.0, 0.8249)]
    tags = {
        b"desc": tag(b"desc", struct.pack(">I", 5) + b"grey\0" + b"\0" * 78),
        b"cprt": tag(b"text", b"none\0"),
        b"wtpt": tag(b"XYZ ", b"".join(fixed)),
        b"kTRC": tag(b"curv", struct.pack(">IH", 1, round(gamma * 256))),
    }
    table, data, place = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += name + struct.pack(">II", place + len(data), len(body))
        data += body
    header = b"\0\0\0\0" + struct.pack(">I", 0x02400000) + b"mntrGRAYXYZ " + b"\0" * 12 + b"acsp" + b"\0" * 28
    header += b"".join(fixed)
    size = 128 + len(table) + len(data)
    return (struct.pack(">I", size) + header).ljust(128, b"\0") + table + data


def test_grey_profiles_are_for_grey_alone():
    grey = Image.linear_gradient("L")
    found = look(written(grey, "PNG", icc_profile=grey_profile(1.0)))
    assert found.notes["profile"] == "grey"
    assert at(found.image, 9, 55)[0] == pytest.approx(255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055), abs=2)
    alpha = look(written(grey.convert("LA"), "PNG", icc_profile=grey_profile(1.0)))
    assert far(alpha.image, found.image) == 0
    colour = look(written(gradient(), "PNG", icc_profile=grey_profile(1.0)))
    assert far(colour.image, gradient()) == 0
    assert "for GRAY, which its pixels are not" in colour.notes["odd"][0]


@pytest.mark.parametrize(
    "kind", [EOFError, MemoryError, AssertionError, AttributeError, RecursionError, BufferError, KeyError]
)
def test_a_reader_that_makes_a_mistake_costs_one_row(monkeypatch, kind):
    def fail(*args, **more):
        raise kind("a mistake")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(BrokenError, match=kind.__name__):
        look(written(gradient(), "PNG"))


def test_lab_is_converted():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = Image.new("RGB", (40, 40), (200, 80, 40))
    stored = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    assert far(look(written(stored, "TIFF")).image, image) <= 6
    assert far(look(written(stored, "TIFF", icc_profile=b"broken")).image, image) <= 6


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes"),
        (b"this is a text file named .png", "this is text, not a picture: 'this is a text file named .png'"),
        (b"<!doctype html><p>404", "a web page"),
        (b"%PDF-1.4 ...", "a PDF"),
        (b"PK\x03\x04....", "a ZIP"),
        (b"\0\0\0\x18ftypmp42....", "a video"),
        (b"\0\0\0\x18ftypheic....", "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"\0" * 5000, "all zero"),
        (bytes(range(128, 256)) * 9, "begins with the bytes 80 81"),
        (written(gradient(), "PNG")[:-60], "cut short"),
        (written(gradient(), "JPEG")[:-200], "cut short"),
        (written(gradient(), "WEBP", lossless=True)[:-40], "the picture is"),
        (written(gradient(), "AVIF")[:-100], "the picture is"),
        (written(gradient(), "TIFF")[:-600], "the picture is"),
        ("größer".encode() * 100, "this is text"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(data, said):
    with pytest.raises(BrokenError) as caught:
        decode(data)
    assert said in str(caught.value)
    assert "0x" not in str(caught.value)


def test_limits_beyond_pillows_own_are_kept_to(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = written(Image.new("RGB", (40, 40)), "PNG")
    with pytest.raises(BombError, match="40 x 40 pixels are over the limit of 1599"):
        decode(data, pixels_limit=1599)
    assert decode(data, pixels_limit=1600)[0].size == (40, 40)
    with pytest.raises(BombError):
        decode(data, pixels_limit=900)
    with pytest.raises(BombError, match="2500 pixels"):
        decode(written(Image.new("RGB", (50, 50)), "PNG"), pixels_limit=1_000_000)


def test_the_notes_come_with_the_result(blobs, stored):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    rows = [
        stored(written(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a"),
        stored(Image.new("RGBA", (40, 40), (1, 2, 3, 0)), "b"),
        stored(Image.new("RGB", (40, 40)), "c"),
    ]
    values = [result.value for result in Decode(blobs=blobs)(rows)]
    assert (values[0]["frames"], values[1]["alpha"]) == (2, 1.0)
    assert values[2] == {"width": 40, "height": 40, "aspect": 1.0, "format": "PNG", "bytes": values[2]["bytes"]}


WHOLE = [
    written(gradient(), form)
    for form in ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "ICO", "JPEG2000", "TGA")
]
WHOLE += [SVG.format(RED + '<use href="#x"/>').encode(), deep_png(2, np.full((8, 8, 3), 9.0))]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(WHOLE), st.data())
def test_no_damage_raises_anything_else(data, draw):
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 6))):
        place = draw.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = draw.draw(st.integers(0, 255))
    damaged = damaged[: draw.draw(st.integers(0, len(damaged)))] if draw.draw(st.booleans()) else damaged
    with suppress(BrokenError, BombError):
        assert look(bytes(damaged), pixels_limit=1_000_000).image.mode == "RGB"
