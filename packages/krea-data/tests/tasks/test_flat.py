import numpy as np
import pytest
from krea_data.tasks.flat import Flat, bars, entropy, laplacian
from PIL import Image, ImageDraw


def drop(blobs, row):
    return Flat(blobs=blobs)([row])[0].drop


def drawing():
    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((8, 8, 56, 56), fill="red")
    pen.rectangle((20, 20, 40, 40), fill="green")
    return image


def test_a_drawing_on_white_stays(blobs, stored):
    assert drop(blobs, stored(drawing())) is None


@pytest.mark.parametrize("colour", ["white", "black"])
def test_blank_pictures_go(blobs, stored, colour):
    image = Image.new("RGB", (64, 64), colour)
    image.putpixel((3, 3), (255, 0, 0))
    assert drop(blobs, stored(image)) == "blank"


def test_flat_pictures_go(blobs, stored):
    assert drop(blobs, stored(Image.new("RGB", (64, 64), (30, 90, 200)))) == "flat"


def test_letterboxes_go_and_white_margins_stay(blobs, stored):
    noise = Image.effect_noise((64, 30), 60).convert("RGB")
    for colour, reason in (("black", "bars"), ("white", None)):
        image = Image.new("RGB", (64, 64), colour)
        image.paste(noise, (0, 17))
        assert drop(blobs, stored(image)) == reason


def test_noise_goes(blobs, stored):
    chess = np.indices((64, 64)).sum(axis=0) % 2 * 255
    assert drop(blobs, stored(Image.fromarray(chess.astype(np.uint8)).convert("RGB"))) == "noise"


def test_entropy_counts_colours():
    rgb = np.zeros((4, 4, 3), dtype=np.uint8)
    assert entropy(rgb) == 0
    rgb[:2] = 255
    assert entropy(rgb) == pytest.approx(1)
    rgb[:, :2, 0] = 128
    assert entropy(rgb) == pytest.approx(2)


def test_bars_need_both_sides():
    rgb = np.random.default_rng(0).integers(0, 200, (20, 20, 3), dtype=np.uint8)
    rgb[:, :3] = 0
    assert bars(rgb) == 0
    rgb[:, -2:] = 0
    assert bars(rgb) == pytest.approx(5 / 20)


def test_laplacian_is_that_of_a_slope_and_of_a_dot():
    slope = np.add.outer(np.arange(6.0), 2 * np.arange(6.0))
    assert laplacian(slope) == 0
    dot = np.zeros((3, 3))
    dot[1, 1] = 1
    assert laplacian(np.pad(dot, 1)) == pytest.approx(np.var([0, 1, 0, 1, -4, 1, 0, 1, 0]))
