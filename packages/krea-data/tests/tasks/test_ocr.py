from collections.abc import Callable, Sequence

import pytest
from krea_data import MemoryTable, Row, run
from krea_data.captions.reading import Text
from krea_data.tasks.ocr import Ocr
from krea_data.testing import MemoryBlobs
from PIL import Image, ImageDraw, ImageFont

CORNERS = ((10.0, 0.0), (60.0, 0.0), (60.0, 50.0), (10.0, 50.0))


class FakeReader:
    name = "fake/1"

    def __init__(self, *texts: tuple[str, float]) -> None:
        self.texts = texts

    def __call__(self, image: Image.Image) -> Sequence[Text]:
        return [Text(text=text, confidence=confidence, corners=CORNERS) for text, confidence in self.texts]


def test_drawn_text_is_read_with_its_box(blobs: MemoryBlobs, stored: Callable[..., Row]) -> None:
    pytest.importorskip("rapidocr", reason="reading text needs krea-data[ocr]")
    image = Image.new("RGB", (320, 160), "#ffe080")
    ImageDraw.Draw(image).text((60, 50), "School", fill="black", font=ImageFont.load_default(48))
    table = MemoryTable([stored(image, "a"), stored(Image.new("RGB", (64, 64), "red"), "b")])
    run(table, [Ocr(blobs=blobs, after=())], worker="me")
    read, blank = (row.results["ocr"] for row in table.scan())
    (text,) = read.value["texts"]
    assert text["text"] == "School"
    assert text["confidence"] > 0.9
    left, top, right, bottom = text["box"]
    assert 40 <= left <= 70 < 180 <= right <= 230
    assert 40 <= top <= 70 < 80 <= bottom <= 125
    assert read.value["density"] == pytest.approx((right - left) * (bottom - top) / (320 * 160), abs=0.02)
    assert blank.value["texts"] == []
    assert (blank.value["density"], blank.drop, read.drop) == (0, None, None)


def test_doubtful_texts_and_signs_do_not_count(blobs: MemoryBlobs, stored: Callable[..., Row]) -> None:
    row = stored(Image.new("RGB", (100, 100)))
    doubtful = FakeReader(("perhaps", 0.59), ("--", 0.99))
    (result,) = Ocr(blobs=blobs, reader=doubtful)([row])
    assert (result.value["texts"], result.value["density"], result.value["texts_count"]) == ([], 0, 0)
    (result,) = Ocr(blobs=blobs, reader=FakeReader(("a\x00b\u202e", 0.6)))([row])
    assert result.value["texts"] == [{"text": "ab", "confidence": 0.6, "box": [10, 0, 60, 50]}]
    assert result.value["density"] == pytest.approx(0.25, abs=0.01)
    assert result.value["reader"] == "fake/1"


def test_only_a_limit_drops(blobs: MemoryBlobs, stored: Callable[..., Row]) -> None:
    row, reader = stored(Image.new("RGB", (100, 100))), FakeReader(("much text", 0.9))
    assert Ocr(blobs=blobs, reader=reader)([row])[0].drop is None
    assert Ocr(blobs=blobs, reader=reader, density_limit=0.3)([row])[0].drop is None
    assert Ocr(blobs=blobs, reader=reader, density_limit=0.2)([row])[0].drop == "text"


def test_very_many_texts_are_counted_but_not_all_kept(blobs: MemoryBlobs, stored: Callable[..., Row]) -> None:
    reader = FakeReader(*[(f"word {number}", 0.9) for number in range(30)])
    (result,) = Ocr(blobs=blobs, reader=reader, most=10)([stored(Image.new("RGB", (100, 100)))])
    assert (len(result.value["texts"]), result.value["texts_count"]) == (10, 30)
