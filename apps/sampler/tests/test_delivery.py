"""Where pictures go is settled, and tried, before anything is drawn."""

import os
from pathlib import Path

import pytest
from krea_sampler import picture
from krea_sampler.delivery import previewing, target
from PIL import Image


def test_a_folder_is_made_and_names_come_from_the_picture(tmp_path: Path) -> None:
    place = target(tmp_path / "new folder" / "deep", 3)
    path = place.put(Image.new("RGB", (4, 4)), {"a": 1}, "fox-s0")
    assert path == tmp_path / "new folder" / "deep" / "fox-s0.png"
    assert picture.parameters(path) == {"a": 1}
    assert os.listdir(path.parent) == ["fox-s0.png"]


def test_a_named_file_is_exactly_that(tmp_path: Path) -> None:
    place = target(tmp_path / "fox.PNG", 1)
    assert place.put(Image.new("RGB", (4, 4)), {}, "ignored") == tmp_path / "fox.PNG"


def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"precious")
    with pytest.raises(ValueError, match="exists"):
        target(tmp_path / "there.png", 1)
    with pytest.raises(ValueError, match="do not fit into"):
        target(tmp_path / "two.png", 2)
    with pytest.raises(ValueError, match="pictures are PNG"):
        target(tmp_path / "fox.jpg", 1)
    with pytest.raises(ValueError, match="cannot write to"):
        target(tmp_path / "there.png" / "folder", 1)
    assert (tmp_path / "there.png").read_bytes() == b"precious"


def test_a_read_only_folder_is_said_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # root may write anywhere but in the kernel's own folders
        folder = Path("/proc/self")
    with pytest.raises(ValueError, match=r"cannot write to .*; choose another place with --out"):
        target(folder, 1)


def test_a_preview_lies_beside_the_output_and_goes_when_the_work_ends(tmp_path: Path) -> None:
    (tmp_path / "fox-preview.png").write_bytes(b"precious")
    place, told = target(tmp_path, 1), []
    with previewing(place, "fox", told.append) as show:
        assert os.listdir(tmp_path) == ["fox-preview.png"]
        for level in (10, 20, 30):
            show(Image.new("RGB", (4, 4), (level, 0, 0)))
            assert picture.pixels(tmp_path / "fox-preview-2.png").getpixel((0, 0)) == (level, 0, 0)
            assert len(os.listdir(tmp_path)) == 2
    assert told == [tmp_path / "fox-preview-2.png"]
    assert os.listdir(tmp_path) == ["fox-preview.png"]
    assert (tmp_path / "fox-preview.png").read_bytes() == b"precious"


def test_a_disk_that_fills_up_is_said_of_the_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    def work() -> None:
        with previewing(target(tmp_path, 1), "fox", lambda _: monkeypatch.setattr(os, "fsync", full)) as show:
            show(Image.new("RGB", (4, 4)))
            show(Image.new("RGB", (4, 4)))

    with pytest.raises(OSError, match=r"^cannot write .*fox-preview\.png \(No space left on device\); make room"):
        work()
    assert os.listdir(tmp_path) == []


def test_an_interrupted_preview_leaves_nothing(tmp_path: Path) -> None:
    def work() -> None:
        with previewing(target(tmp_path, 1), "fox", print) as show:
            show(Image.new("RGB", (4, 4)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert os.listdir(tmp_path) == []
