import io

from krea_data.card import card, sheet
from PIL import Image

ABOUT = {"shards": 2, "seed": 7, "fingerprint": "f" * 8}


def record(n: int, **meta: str) -> dict:
    captions = {"short": "one two", "long": "one two three four" + " five" * (n % 2)}
    return {"id": f"r{n}", "width": 64, "height": 48 + 16 * (n % 2), "captions": captions, "meta": meta, "n": n}


def test_the_card_counts_what_is_there() -> None:
    records = [record(n, licence="MIT" if n < 7 else "CC0-1.0", source=f"s{n}") for n in range(30)]
    text = card(records, {**ABOUT, "too_small": 4, "side_px": 64}, "p.webp")
    assert text.startswith("# Pictures with captions\n\n30 pictures with captions, in 2 tars")
    assert "![some of the pictures](p.webp)" in text
    assert "| CC0-1.0 | 23 |\n| MIT | 7 |" in text
    assert "| 10 others | 10 |" in text, "twenty sources are named"
    assert "| 64 x 48 | 15 |" in text
    assert "| short | 30 | 2 |\n| long | 30 | 5 |" in text
    assert "4 pictures were too small for 64 pixels" in text
    assert "`ffffffff`" in text


def test_what_a_source_says_cannot_break_a_table() -> None:
    text = card([record(0, licence="a|b\nc", source="")], ABOUT, "p.webp")
    assert "| a\\|b c | 1 |" in text
    assert "| unknown | 1 |" in text


def test_the_sheet_shows_pictures_from_all_over() -> None:
    asked: list[int] = []

    def picture(one: object) -> Image.Image:
        assert isinstance(one, dict)
        asked.append(one["n"])
        return Image.new("RGB", (200, 100), (one["n"], 0, 0))

    image = Image.open(io.BytesIO(sheet([record(n) for n in range(100)], picture)))
    assert image.size == (768, 384)
    assert len(asked) == 32
    assert asked[0] == 0
    assert asked[-1] > 90
    assert Image.open(io.BytesIO(sheet([record(0)], picture))).size == (768, 96)
