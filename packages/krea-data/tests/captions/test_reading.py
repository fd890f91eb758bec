import pickle

import pytest
from krea_data.captions.reading import RapidReader, Text, density, in_order
from PIL import Image, ImageDraw, ImageFont


def line(text: str, left: float, top: float, right: float, bottom: float) -> Text:
    return Text(text=text, confidence=1.0, corners=((left, top), (right, top), (right, bottom), (left, bottom)))


def test_lines_are_read_from_the_top_and_from_the_left() -> None:
    texts = [
        line("four", 80, 48, 99, 66),
        line("one", 0, 2, 30, 20),
        line("three", 0, 50, 40, 68),
        line("two", 50, 0, 90, 24),
        line("five", 0, 75, 20, 90),
    ]
    assert [text.text for text in in_order(texts)] == ["one", "two", "three", "four", "five"]
    assert in_order([]) == []


def test_a_tall_text_does_not_join_the_lines_beside_it() -> None:
    tall, upper, lower = line("tall", 0, 0, 10, 100), line("upper", 20, 0, 90, 20), line("lower", 20, 80, 90, 100)
    assert [text.text for text in in_order([lower, tall, upper])] == ["upper", "tall", "lower"]


def test_density_counts_each_place_once() -> None:
    assert density([], (200, 100)) == 0
    half = line("half", 0, 0, 100, 100)
    assert density([half], (200, 100)) == pytest.approx(0.5, abs=0.01)
    assert density([half, line("in it", 10, 10, 50, 50)], (200, 100)) == pytest.approx(0.5, abs=0.01)
    assert density([half, line("rest", 100, 0, 200, 100)], (200, 100)) == pytest.approx(1, abs=0.01)
    slanted = Text(text="/", confidence=1.0, corners=((0, 100), (100, 0), (200, 0), (100, 100)))
    assert density([slanted], (200, 100)) == pytest.approx(0.5, abs=0.02)


def test_text_is_read_and_nothing_else() -> None:
    pytest.importorskip("rapidocr", reason="reading text needs krea-data[ocr]")
    reader = pickle.loads(pickle.dumps(RapidReader()))
    image = Image.new("RGB", (400, 200), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(40)
    draw.text((230, 112), "left", fill="red", font=font)
    draw.text((20, 20), "STOP HERE", fill="black", font=font)
    draw.text((20, 110), "Exit 42", fill="red", font=font)
    found = reader(image)
    assert [text.text for text in found] == ["STOP HERE", "Exit 42", "left"]
    assert all(text.confidence > 0.9 for text in found)
    left, top, right, bottom = found[0].box
    assert left < 30 < 200 < right
    assert top < 30 < 55 < bottom
    assert reader(Image.new("RGB", (64, 64), "white")) == []
    for size in ((2, 300), (1, 1)):
        assert reader(Image.new("RGB", size, "white")) == []
