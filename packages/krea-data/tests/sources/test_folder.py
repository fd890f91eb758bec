import os

import pytest
from krea_data.sources import FolderSource, ingest
from krea_data.sources.folder import picture_endings


def rows_of(table, blobs, folder, **more):
    ingest(table, blobs, FolderSource(name="photos", folder=folder, **more))
    return {row.id: row for row in table.scan()}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def test_pictures_come_with_what_lies_beside_them(table, blobs, tmp_path, png):
    write(tmp_path / "b.png", png(1))
    write(tmp_path / "b.txt", "a caption\n")
    write(tmp_path / "sub" / "a.JPG", png(2, "JPEG"))
    write(tmp_path / "sub" / "a.JPG.json", '{"license": "cc0", "artist": "Ann", "labels": ["x"]}')
    write(tmp_path / "sub" / "notes.md", "no picture")
    write(tmp_path / ".hidden" / "c.png", png(3))
    write(tmp_path / ".hidden.png", png(3))
    rows = rows_of(table, blobs, tmp_path, licence="MIT", author="me")
    assert list(rows) == ["photos/b.png", "photos/sub/a.JPG"]
    assert blobs.get(rows["photos/b.png"].blob) == png(1)
    assert rows["photos/b.png"].meta == {
        "source": "photos",
        "caption": "a caption",
        "licence": "MIT",
        "author": "me",
        "file": "b.png",
    }
    meta = rows["photos/sub/a.JPG"].meta
    assert (meta["licence"], meta["author"], meta["tags"]) == ("CC0-1.0", "Ann", ["x"])


def test_the_order_is_that_of_names(tmp_path, png):
    for name in ("b/2.png", "b/10.png", "a.png", "c.png", "b.png", "a/z/1.png", "ä.png"):
        write(tmp_path / name, png())
    source = FolderSource(name="f", folder=tmp_path)
    keys = [entry.key for entry in source.entries()]
    assert keys == ["a.png", "b.png", "c.png", "ä.png", "a/z/1.png", "b/10.png", "b/2.png"]
    assert keys == [entry.key for entry in source.entries()]


def test_metadata_listings_are_read(table, blobs, tmp_path, png):
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.png", "text": "hi", "license": "MIT"}\nbroken\n[1]\n\n')
    write(tmp_path / "a.png", png())
    meta = rows_of(table, blobs, tmp_path)["photos/a.png"].meta
    assert (meta["caption"], meta["licence"]) == ("hi", "MIT")
    assert "stated" not in meta


def test_links_neither_loop_nor_double(tmp_path, png):
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root / "real" / "a.png", png(1))
    write(outside / "b.png", png(2))
    (root / "loop").symlink_to(root)
    (root / "real" / "up").symlink_to("..")
    (root / "again").symlink_to(root / "real")
    (root / "out").symlink_to(outside)
    (root / "out2").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (outside / "self").symlink_to(outside)
    (root / "above").symlink_to(tmp_path)
    (root / "file.png").symlink_to(outside / "b.png")
    (root / "itself.png").symlink_to("itself.png")
    keys = [entry.key for entry in FolderSource(name="f", folder=root).entries()]
    assert keys == ["file.png", "itself.png", "out/b.png", "real/a.png"]


def test_what_cannot_be_read_says_why(table, blobs, tmp_path, png):
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    (tmp_path / "itself.png").symlink_to("itself.png")
    os.mkfifo(tmp_path / "pipe.png")
    write(tmp_path / "large.png", png() + b"x" * 3000)
    write(tmp_path / "zero.png", b"")
    rows = rows_of(table, blobs, tmp_path, bytes_limit=3000)
    problems = {row.id.rpartition("/")[2]: row.meta.get("problem") for row in rows.values()}
    assert "No such file" in problems["nowhere.png"]
    assert "symbolic links" in problems["itself.png"]
    assert "a pipe" in problems["pipe.png"]
    assert "over the limit of 3000" in problems["large.png"]
    assert problems["zero.png"] is None


def test_names_in_any_bytes_are_read(table, blobs, tmp_path, png):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(path, "wb") as file:
            file.write(png(5))
    except OSError:
        pytest.skip("this file system takes no such names")
    rows = rows_of(table, blobs, tmp_path)
    assert blobs.get(rows["photos/caf\\xe9.png"].blob) == png(5)


def test_a_sidecar_that_is_broken_or_endless_does_not_cost_the_picture(table, blobs, tmp_path, png):
    write(tmp_path / "a.png", png(1))
    write(tmp_path / "a.json", "{")
    write(tmp_path / "b.png", png(2))
    write(tmp_path / "b.txt", b"x" * (5 << 20))
    (tmp_path / "c.json").mkdir()
    write(tmp_path / "c.png", png(3))
    rows = rows_of(table, blobs, tmp_path)
    assert "no JSON" in rows["photos/a.png"].meta["notes"][0]
    assert all(row.blob for row in rows.values())


def test_every_format_that_is_read_is_taken():
    assert {
        ".png",
        ".jpg",
        ".jpeg",
        ".webp",
        ".avif",
        ".svg",
        ".gif",
        ".tif",
        ".bmp",
        ".jp2",
        ".tga",
    } <= picture_endings()
    assert not {".txt", ".json", ".pdf", ".mpg", ".h5"} & picture_endings()


def test_a_folder_has_to_be_there(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        FolderSource(name="f", folder=tmp_path / "none")
