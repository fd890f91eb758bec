"""One folder of everything that goes wrong with files: each row says why, and the good ones come through."""

import io
import struct
import zlib

import pytest
from krea_data.sources import FolderSource, ingest
from krea_data.tasks import Decode
from krea_data.worker import run
from PIL import Image

pytest.importorskip("resvg_py")


def huge_png():
    """60,000 x 60,000 pixels in 80 bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def written(image, form):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    noise = Image.effect_noise((64, 64), 80)
    files = {
        "cmyk.jpg": written(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"),
        "cut.jpg": written(noise.convert("RGB"), "JPEG")[:-500],
        "deep.png": written(Image.new("I;16", (64, 64), 30_000), "PNG"),
        "good.png": written(noise, "PNG"),
        "good.txt": b"a\x00 caption\x1b[31m with \xe2\x80\xae control",
        "huge.png": huge_png(),
        "none.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><g>",
        "page.png": b"<!DOCTYPE html><title>404</title>",
        "text.png": b"this is a text file named .png",
        "zero.png": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_every_row_says_why_and_the_run_goes_on(table, blobs, folder):
    assert ingest(table, blobs, FolderSource(name="bad", folder=folder)).new == 9
    run(table, [Decode(blobs=blobs)], worker="w")
    rows = {row.id.removeprefix("bad/"): row for row in table.scan()}
    said = {
        name: (row.results["decode"].drop, row.results["decode"].value.get("error", "")) for name, row in rows.items()
    }
    assert said["cmyk.jpg"] == said["deep.png"] == said["good.png"] == (None, "")
    assert said["cut.jpg"][0] == "broken"
    assert "cut short" in said["cut.jpg"][1]
    assert said["huge.png"][0] == "bomb"
    assert "3600000000 pixels" in said["huge.png"][1]
    assert said["none.svg"][0] == "broken"
    assert said["page.png"] == ("broken", "this is a web page (HTML), not a picture")
    assert said["text.png"] == ("broken", "this is text, not a picture: 'this is a text file named .png'")
    assert said["zero.png"] == ("broken", "the file is empty: it has 0 bytes")
    assert rows["good.png"].meta["caption"] == "a  caption [31m with  control"
    assert rows["good.png"].meta["notes"] == ["3 control characters were taken out of what was stated"]
    assert table.stats()["decode"].dead == 0
    assert table.stats()["decode"].done == 9
