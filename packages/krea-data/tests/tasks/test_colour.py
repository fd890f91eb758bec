import pytest
from krea_data.tasks.colour import NAMES, names, palette
from PIL import Image, ImageDraw


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ("#ff0000", "red"),
        ("#dd2e44", "red"),
        ("#f4900c", "orange"),
        ("#ffcc4d", "yellow"),
        ("#5c913b", "green"),
        ("#3b88c3", "blue"),
        ("#9266cc", "purple"),
        ("#ff69b4", "pink"),
        ("#8a4b38", "brown"),
        ("#ffffff", "white"),
        ("#99aab5", "grey"),
        ("#101010", "black"),
    ],
)
def test_colours_have_their_names(colour, name):
    assert NAMES[names(Image.new("RGB", (2, 2), colour))[0, 0]] == name


def test_colours_come_by_area_and_without_the_background():
    image = Image.new("RGB", (60, 60), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((5, 5, 54, 30), fill="green")
    pen.rectangle((5, 31, 54, 50), fill="red")
    pen.rectangle((5, 51, 8, 53), fill="blue")  # too little to be named
    found = palette(image)
    assert found.colours == ("green", "red")
    assert found.background == "white"


def test_a_border_of_several_colours_is_no_background():
    image = Image.new("RGB", (60, 60), "blue")
    ImageDraw.Draw(image).rectangle((0, 0, 60, 30), fill="yellow")
    assert palette(image).background is None
    assert set(palette(image).colours) == {"blue", "yellow"}


def test_one_colour_is_background_alone():
    assert palette(Image.new("RGB", (9, 9), "black")).colours == ()
