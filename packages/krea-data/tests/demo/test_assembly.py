import hashlib
import json

import pytest
from krea_data import demo
from krea_data.demo.errors import FetchError
from PIL import Image


def test_a_corpus_has_rows_and_pictures(folders, tmp_path):
    seen = []
    out = demo.build(folders, tmp_path / "out", side_px=32, on_progress=lambda *what: seen.append(what))
    rows = demo.rows(out)
    blobs = demo.blobs(out)
    assert len(rows) == 4 + 3 + 4 + 4
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert {row.meta["source"] for row in rows} == {"fluent-3d", "fluent-flat", "noto", "twemoji"}
    for row in rows:
        data = blobs.get(row.blob)
        assert hashlib.sha256(data).hexdigest() == row.blob
        with Image.open(blobs.path(row.blob)) as image:
            assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "PNG")
    assert seen[-1] == ("draw (pictures)", 15, 15)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert (out / "failed.jsonl").read_text() == ""


def test_the_same_sources_give_the_same_bytes(folders, tmp_path):
    one = demo.build(folders, tmp_path / "one", side_px=16)
    two = demo.build(dict(reversed(folders.items())), tmp_path / "two", side_px=16)
    assert (one / "rows.jsonl").read_bytes() == (two / "rows.jsonl").read_bytes()


def test_what_cannot_be_drawn_is_listed_and_left_out(folders, tmp_path):
    table = folders["noto"] / "icons.json"
    icons = json.loads(table.read_text())
    icons["icons"]["red-apple"]["body"] = ""
    icons["icons"]["red-heart"]["body"] = "<rect"
    table.write_text(json.dumps(icons))
    out = demo.build({"labels": folders["labels"], "noto": folders["noto"]}, tmp_path / "out", side_px=16)
    assert [row.meta["concept"] for row in demo.rows(out)] == ["thumbs up", "keycap: #"]
    failed = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    assert {one["id"] for one in failed} == {"noto/1f34e", "noto/2764"}
    assert "nothing visible" in failed[0]["failed"]


def test_further_languages_are_an_option(folders, tmp_path):
    out = demo.build({"labels": folders["labels"], "noto": folders["noto"]}, tmp_path, side_px=16, locales=("de",))
    found = {row.meta["concept"]: row.meta.get("labels") for row in demo.rows(out)}
    assert found["red apple"] == {"de": "roter Apfel"}
    assert found["thumbs up"] is None


def test_the_corpus_in_the_cache_is_drawn_once(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("krea_data.demo.assembly.fetch", lambda cache, sets, on_progress: folders)
    first = demo.corpus(tmp_path, side_px=16)
    mark = (first / "rows.jsonl").stat().st_mtime_ns
    assert demo.corpus(tmp_path, side_px=16) == first
    assert (first / "rows.jsonl").stat().st_mtime_ns == mark
    assert demo.corpus(tmp_path, side_px=24) != first


def test_a_renderer_that_dies_leaves_nothing(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(FetchError, match="drawing the corpus failed"):
        demo.build(folders, tmp_path / "out", side_px=16)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".new-*"))


@pytest.mark.parametrize(
    ("given", "words"),
    [({"side_px": 4}, "side_px 4"), ({"side_px": 5000}, "8 to 1024"), ({"locales": ("xx",)}, "no labels in xx")],
)
def test_wrong_settings_are_refused(folders, tmp_path, given, words):
    with pytest.raises(ValueError, match=words):
        demo.build(folders, tmp_path / "out", **given)


def test_unknown_sets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="choose from fluent-3d"):
        demo.fetch(tmp_path, ("nato",))


def test_a_folder_without_a_corpus_is_explained(tmp_path):
    with pytest.raises(FetchError, match="reading the corpus"):
        demo.rows(tmp_path)


@pytest.mark.network
def test_the_real_packages(tmp_path):
    folder = demo.corpus(tmp_path, ("twemoji",), side_px=32)
    found = demo.rows(folder)
    assert len(found) == 1914
    assert (folder / "failed.jsonl").read_text() == ""
    assert {row.meta["licence"] for row in found} == {"CC-BY-4.0"}
    assert demo.fetch(tmp_path, ("twemoji",)).keys() == {"labels", "twemoji"}
