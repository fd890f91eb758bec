import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest
from krea_data.sources import WebDatasetSource, ingest


def tar(files, path=None):
    """A tar of (name, bytes), as bytes and maybe in a file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def samples(png, count, start=0):
    found = []
    for n in range(start, start + count):
        found += [(f"{n:04d}.png", png(n)), (f"{n:04d}.txt", f"number {n}".encode())]
        found.append((f"{n:04d}.json", json.dumps({"license": "cc0", "n": n}).encode()))
    return found


def rows_of(table, blobs, *tars, **more):
    ingest(table, blobs, WebDatasetSource(name="wds", tars=tars, **more))
    return {row.id: row for row in table.scan()}


def test_samples_become_rows(table, blobs, tmp_path, png):
    one, two = tmp_path / "a-000.tar", tmp_path / "a-001.tar"
    tar(samples(png, 3), one)
    tar(samples(png, 3, 3), two)
    rows = rows_of(table, blobs, one, two)
    assert list(rows) == [f"wds/a-00{n // 3}/{n:04d}" for n in range(6)]
    for n, row in enumerate(rows.values()):
        assert blobs.get(row.blob) == png(n)
        assert row.meta["caption"] == f"number {n}"
        assert row.meta["licence"] == "CC0-1.0"
        assert row.meta["stated"] == {"n": n}
        assert row.meta["file"] == f"a-00{n // 3}.tar"


def test_grouping_is_that_of_webdataset(table, blobs, tmp_path, png):
    theirs_ = pytest.importorskip("webdataset.tariterators")
    files = [
        ("dir.x/a.png", png(1)),
        ("dir.x/a.TXT", b"one"),
        ("dir.x/a.b.png", png(2)),
        ("__meta__/skip.png", png(9)),
        ("c", b"no ending"),
        ("dir/c.d/e.jpg", png(3, "JPEG")),
        ("f.cls", b"4"),
        ("f.seg.png", png(4)),
        ("g.png", png(5)),
        ("f.png", png(6)),
    ]
    path = tmp_path / "t.tar"
    tar(files, path)
    theirs = {}
    with path.open("rb") as file:
        found = ({"__url__": "", **one} for one in theirs_.tar_file_iterator(file))
        for sample in theirs_.group_by_keys(found):
            pictures = [data for ending, data in sample.items() if ending.rpartition(".")[2] in ("png", "jpg")]
            theirs.setdefault(sample["__key__"], []).extend(pictures)
    ours = {}
    for row in rows_of(table, blobs, path).values():
        if row.blob:
            key = row.id.removeprefix("wds/t/").removesuffix("~2").removesuffix(".png")
            key = key.removesuffix(".b") if key.endswith("a.b") else key
            ours.setdefault(key, []).append(blobs.get(row.blob))
    assert {key: sorted(data) for key, data in ours.items()} == {key: sorted(data) for key, data in theirs.items()}
    assert sum(map(len, ours.values())) == 6


def test_a_sample_with_several_pictures_is_several_rows(table, blobs, tmp_path, png):
    path = tmp_path / "t.tar"
    tar([("a.left.png", png(1)), ("a.right.png", png(2)), ("a.txt", b"both")], path)
    rows = rows_of(table, blobs, path)
    assert list(rows) == ["wds/t/a.left.png", "wds/t/a.right.png"]
    assert {row.meta["caption"] for row in rows.values()} == {"both"}


def test_keys_that_come_twice_are_two_rows(table, blobs, tmp_path, png):
    path = tmp_path / "t.tar"
    tar([("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3))], path)
    assert list(rows_of(table, blobs, path)) == ["wds/t/a", "wds/t/a~2", "wds/t/b"]


def test_a_sample_without_a_picture_says_so(table, blobs, tmp_path):
    path = tmp_path / "t.tar"
    tar([("a.txt", b"alone"), ("a.json", b"{}")], path)
    (row,) = rows_of(table, blobs, path).values()
    assert row.meta["problem"] == "the sample has no picture, only txt, json"
    assert row.meta["caption"] == "alone"


@pytest.mark.parametrize("cut", [100, 512, 700, 512 + 200, 4096, 5000])
def test_a_tar_that_is_cut_short_says_where_and_the_next_one_comes(table, blobs, tmp_path, png, cut):
    one, two = tmp_path / "a.tar", tmp_path / "b.tar"
    whole = tar(samples(png, 5))
    one.write_bytes(whole[:cut])
    tar(samples(png, 2, 7), two)
    rows = rows_of(table, blobs, one, two)
    assert [row.id for row in rows.values() if row.blob][-2:] == ["wds/b/0007", "wds/b/0008"]
    (problem,) = [row.meta["problem"] for row in rows.values() if not row.blob]
    assert "cut short" in problem
    one.write_bytes(whole)
    again = ingest(table, blobs, WebDatasetSource(name="wds", tars=(one, two)))
    good = {row.id.rpartition("/")[2]: row for row in table.scan() if row.blob}
    assert sorted(good) == ["0000", "0001", "0002", "0003", "0004", "0007", "0008"]
    assert [blobs.get(good[f"{n:04d}"].blob) for n in range(5)] == [png(n) for n in range(5)]
    assert again.new > 0


def test_every_length_of_a_tar_is_survived(blobs, tmp_path, png):
    from krea_data.memory import MemoryTable

    whole = tar([("a.png", png(1)), ("a.txt", b"x" * 600), ("b.png", png(2))])
    path = tmp_path / "t.tar"
    end = len(whole.rstrip(b"\0"))
    for cut in range(0, end + 700, 157):
        path.write_bytes(whole[:cut])
        rows = rows_of(MemoryTable(), blobs, path)
        pictures = [blobs.get(row.blob) for row in rows.values() if row.blob]
        assert set(pictures) <= {png(1), png(2)}
        told = [row for row in rows.values() if not row.blob]
        if cut < end:
            assert len(told) == 1
            assert "short" in told[0].meta["problem"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
def test_packed_tars_are_read_and_told_when_broken(table, blobs, tmp_path, png, pack):
    ending = {"gzip": "gz", "bz2": "bz2", "lzma": "xz"}[pack.__module__.lstrip("_")]
    path, broken = tmp_path / f"t.tar.{ending}", tmp_path / f"u.tar.{ending}"
    files = [(name, data + bytes(range(256)) * 8 if name.endswith("txt") else data) for name, data in samples(png, 20)]
    data = pack(tar(files))
    path.write_bytes(data)
    broken.write_bytes(data[: len(data) // 2])
    rows = rows_of(table, blobs, path, broken)
    assert [blobs.get(rows[f"wds/t/{n:04d}"].blob) for n in range(20)] == [png(n) for n in range(20)]
    told = [row for row in rows.values() if not row.blob]
    assert [row.id.split("/")[1] for row in told] == ["u"]
    assert "short" in told[0].meta["problem"]


def test_a_damaged_header_ends_the_tar_in_words(table, blobs, tmp_path, png):
    path = tmp_path / "t.tar"
    whole = bytearray(tar([("a.png", png(1)), ("b.png", png(2))]))
    second = whole.index(b"b.png")
    whole[second : second + 200] = b"\xff" * 200
    path.write_bytes(whole)
    rows = rows_of(table, blobs, path)
    assert list(rows) == [f"wds/t/(cut short at byte {second})", "wds/t/a"]


def test_what_is_no_tar_is_a_row(table, blobs, tmp_path):
    text, none = tmp_path / "a.tar", tmp_path / "b.tar"
    text.write_text("hello " * 1000)
    rows = rows_of(table, blobs, text, none)
    assert "no tar" in rows["wds/a/(cut short at byte 0)"].meta["problem"]
    assert "No such file" in rows["wds/b/(not opened)"].meta["problem"]


def test_a_cut_caption_costs_its_picture_until_the_tar_is_whole(table, blobs, tmp_path, png):
    path = tmp_path / "t.tar"
    whole = tar([("a.png", png(1)), ("a.txt", b"words " * 100)])
    path.write_bytes(whole[: whole.index(b"words") + 50])
    (row,) = rows_of(table, blobs, path).values()
    assert "cut short inside of a.txt" in row.meta["problem"]
    path.write_bytes(whole)
    rows = rows_of(table, blobs, path)
    assert rows["wds@2/t/a"].meta["caption"] == ("words " * 100).strip()
    path.write_bytes(whole[: whole.index(b"a.txt") + 20])
    ingest(table, blobs, WebDatasetSource(name="other", tars=(path,)))
    row = next(row for row in table.scan() if row.id == "other/t/a")
    assert "some of its files may be missing" in row.meta["notes"][0]


def test_links_folders_and_large_files_in_a_tar(table, blobs, tmp_path, png):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("d.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        info = tarfile.TarInfo("big.png")
        info.size = 5000
        archive.addfile(info, io.BytesIO(b"x" * 5000))
        info = tarfile.TarInfo("../../up.png")
        info.size = len(png(1))
        archive.addfile(info, io.BytesIO(png(1)))
    rows = rows_of(table, blobs, path, bytes_limit=4000)
    assert "over the limit of 4000" in rows["wds/t/big"].meta["problem"]
    assert [row.id for row in rows.values() if row.blob] == ["wds/t/../../up"]


def test_tars_need_names_of_their_own(tmp_path):
    with pytest.raises(ValueError, match="given twice"):
        WebDatasetSource(name="w", tars=(tmp_path / "a" / "x.tar", tmp_path / "b" / "x.tar.gz"))
    with pytest.raises(ValueError, match="one tar or more"):
        WebDatasetSource(name="w", tars=())
