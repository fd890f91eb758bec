import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from krea_data.fitting import Size, fitted
from krea_data.rows import Result, Row
from krea_data.shards import Settings, export, index
from krea_data.testing import MemoryBlobs, picture
from PIL import Image


@pytest.fixture
def blobs():
    return MemoryBlobs()


@pytest.fixture
def rows(blobs):
    return [make(blobs, number) for number in range(25)]


def make(blobs, number, side_px=16, *, decode=None, caption=None):
    text = {length: {"text": f"{length} {number}", "source": "label"} for length in ("short", "medium", "long")}
    size = {"width": side_px, "height": side_px, "format": "PNG"}
    results = {
        "decode": Result(value=size, drop=decode),
        "caption": Result(value=text, drop=caption),
    }
    meta = {"licence": "MIT", "author": f"author {number % 2}", "package": "made-up", "version": "1", "style": "flat"}
    return Row(id=f"test/{number:03d}", blob=blobs.put(picture(number, side_px)), meta=meta, results=results)


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_every_row_is_in_the_tars_and_in_the_index_once(rows, blobs, tmp_path):
    out = export(rows, blobs, tmp_path / "out", Settings(per_shard=10))
    records = index(out)
    assert sorted(record["id"] for record in records) == [row.id for row in rows]
    assert [record["id"] for record in records] != [row.id for row in rows]
    by_id = {row.id: row for row in rows}
    for record in records:
        data = (out / record["shard"]).read_bytes()[record["offset"] : record["offset"] + record["bytes"]]
        assert data == blobs.get(by_id[record["id"]].blob)
    assert sorted(path.name for path in out.glob("*.tar")) == [f"16x16-{n:05d}.tar" for n in range(3)]
    with tarfile.open(out / "16x16-00001.tar") as archive:
        names = archive.getnames()
        assert names[:4] == ["000000.png", "000000.json", "000001.png", "000001.json"]
        file = archive.extractfile("000003.json")
        assert file is not None
        described = json.load(file)
    assert described["id"] == records[13]["id"]
    assert described["captions"]["long"] == f"long {int(described['id'][-3:])}"
    assert described["meta"]["licence"] == "MIT"


def test_the_same_rows_give_the_same_bytes_in_any_order(rows, blobs, tmp_path):
    one = export(rows, blobs, tmp_path / "one", Settings(per_shard=10))
    two = export(rows[::-1], blobs, tmp_path / "two", Settings(per_shard=10))
    other = export(rows, blobs, tmp_path / "other", Settings(per_shard=10, seed=1))
    assert contents(one) == contents(two)
    assert contents(one) != contents(other)


def test_an_interrupted_export_goes_on_and_ends_the_same(rows, blobs, tmp_path, monkeypatch):
    expected = contents(export(rows, blobs, tmp_path / "whole", Settings(per_shard=5)))
    reads = []

    class Dying:
        def get(self, key):
            reads.append(key)
            if len(reads) == 13:
                raise OSError(28, "No space left on device")
            return blobs.get(key)

        def put(self, data):
            raise NotImplementedError

    with pytest.raises(OSError, match="No space"):
        export(rows, Dying(), tmp_path / "out", Settings(per_shard=5))
    assert not (tmp_path / "out").exists()
    reads[:] = ["as if 13 were past"] * 20
    out = export(rows, Dying(), tmp_path / "out", Settings(per_shard=5))
    assert len(reads) == 20 + 15  # two shards were whole already
    assert contents(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_an_export_that_dies_at_the_very_end_is_done_again(rows, blobs, tmp_path, monkeypatch):
    replace = os.replace

    def die(source, target):
        if str(target).endswith("out"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            export(rows, blobs, tmp_path / "out", Settings(per_shard=5))
    out = export(rows, blobs, tmp_path / "out", Settings(per_shard=5))
    assert contents(out) == contents(export(rows, blobs, tmp_path / "whole", Settings(per_shard=5)))


def test_doing_it_again_does_nothing_and_something_else_is_refused(rows, blobs, tmp_path):
    out = export(rows, blobs, tmp_path / "out")
    before = contents(out)
    assert export(rows, MemoryBlobs(), tmp_path / "out") == out  # no picture is read
    assert contents(out) == before
    with pytest.raises(ValueError, match="something else"):
        export(rows[1:], blobs, tmp_path / "out")
    assert contents(out) == before


def test_each_shard_has_one_size(rows, blobs, tmp_path):
    out = export([*rows, make(blobs, 99, 24)], blobs, tmp_path / "out")
    for record in index(out):
        assert record["shard"].startswith(f"{record['width']}x{record['height']}-")
    assert len(list(out.glob("*.tar"))) == 2


def drawn(blobs, number, width, height):
    """A row whose picture has this size."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(number, 64))).resize((width, height)).save(buffer, "png")
    row = make(blobs, number)
    size = {"width": width, "height": height, "format": "PNG"}
    return replace(row, blob=blobs.put(buffer.getvalue()), results={**row.results, "decode": Result(value=size)})


def test_a_stage_gets_its_sizes(blobs, tmp_path):
    rows = [drawn(blobs, 0, 64, 64), drawn(blobs, 1, 130, 70), drawn(blobs, 2, 40, 90), drawn(blobs, 3, 63, 64)]
    out = export(rows, blobs, tmp_path / "out", Settings(side_px=64))
    found = {record["id"]: record for record in index(out)}
    assert {one: (record["width"], record["height"]) for one, record in found.items()} == {
        "test/000": (64, 64),
        "test/001": (80, 48),
    }
    for row_id, record in found.items():
        data = (out / record["shard"]).read_bytes()[record["offset"] : record["offset"] + record["bytes"]]
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size) == ("WEBP", (record["width"], record["height"]))
        whole = Image.open(io.BytesIO(blobs.get(record["blob"]))).convert("RGB")
        assert record["from"] == list(whole.size)
        wanted = np.asarray(fitted(whole, Size(record["width"], record["height"])), dtype=float)
        assert np.abs(np.asarray(image.convert("RGB"), dtype=float) - wanted).mean() < 6, row_id
    assert json.loads((out / "about.json").read_text())["too_small"] == 2
    with pytest.raises(ValueError, match="holds something else"):
        export(rows, blobs, tmp_path / "out", Settings(side_px=64, quality=80))
    with pytest.raises(ValueError, match="all 4 pictures are smaller"):
        export(rows, blobs, tmp_path / "none", Settings(side_px=512))
    assert contents(export(rows[::-1], blobs, tmp_path / "two", Settings(side_px=64))) == contents(out)


def test_attribution_names_everybody(rows, blobs, tmp_path):
    text = (export(rows, blobs, tmp_path / "out") / "ATTRIBUTION.md").read_text()
    assert "| MIT | author 0 | made-up | 1 | 13 |" in text
    assert "| MIT | author 1 | made-up | 1 | 12 |" in text


@pytest.mark.parametrize("drop", ["decode", "caption"])
def test_dropped_rows_are_refused(rows, blobs, tmp_path, drop):
    reasons = {"decode": None, "caption": None} | {drop: "some reason"}
    dropped = make(blobs, 50, decode=reasons["decode"], caption=reasons["caption"])
    with pytest.raises(ValueError, match=rf"test/050 was not kept by {drop}"):
        export([*rows, dropped], blobs, tmp_path / "out")


def test_an_unfinished_export_is_no_export(tmp_path):
    with pytest.raises(ValueError, match="no finished export"):
        index(tmp_path)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="per_shard 0"):
        Settings(per_shard=0)
