"""PNGs: parameters survive, damage is noticed, nothing is replaced or left half-written."""

import json
import os
from pathlib import Path

import pytest
from krea_sampler import picture
from PIL import Image, PngImagePlugin

PARAMETERS = {"prompts": ["ein Käse, 乳酪"], "seeds": [1], "guidance": 2.5}


def image(turns: int = 0) -> Image.Image:
    return Image.linear_gradient("L").resize((16, 16)).rotate(90 * turns).convert("RGB")


def test_parameters_and_pixels_come_back(tmp_path: Path) -> None:
    path = picture.save(picture.encode(image(), PARAMETERS), tmp_path, "x")
    assert picture.parameters(path) == PARAMETERS
    assert picture.pixels(path).convert("RGB").tobytes() == image().tobytes()
    assert picture.encode(image(), PARAMETERS) == path.read_bytes()


def test_foreign_and_damaged_files_are_named(tmp_path: Path) -> None:
    whole = picture.encode(image(), PARAMETERS)
    cases = {
        "cut.png": (whole[: len(whole) - 40], "not a readable PNG"),
        "text.png": (b"hello", "not a readable PNG"),
        "empty.png": (b"", "not a readable PNG"),
        "flipped.png": (whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], "not a readable PNG"),
    }
    for name, (data, says) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=says):
            picture.parameters(tmp_path / name)
    image().save(tmp_path / "foreign.png")
    with pytest.raises(ValueError, match="no parameters"):
        picture.parameters(tmp_path / "foreign.png")
    with pytest.raises(ValueError, match="no file"):
        picture.parameters(tmp_path / "missing.png")
    for text in ("{", json.dumps([1])):
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("krea", text)
        image().save(tmp_path / "json.png", pnginfo=chunks)
        with pytest.raises(ValueError, match="damaged"):
            picture.parameters(tmp_path / "json.png")


def test_a_taken_name_gets_a_number_and_a_named_file_is_refused(tmp_path: Path) -> None:
    first = picture.save(b"one", tmp_path, "a")
    second = picture.save(b"two", tmp_path, "a")
    assert [first.name, second.name] == ["a.png", "a-2.png"]
    with pytest.raises(FileExistsError):
        picture.save_as(b"three", first)
    assert first.read_bytes() == b"one"
    assert sorted(os.listdir(tmp_path)) == ["a-2.png", "a.png"]


def test_without_hard_links_nothing_is_replaced_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = picture.save(b"one", tmp_path, "a")
    assert path.read_bytes() == b"one"
    with pytest.raises(FileExistsError):
        picture.save_as(b"two", path)
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for put in (lambda: picture.save(b"one", tmp_path, "a"), lambda: picture.replace(b"one", tmp_path / "a.png")):
        with pytest.raises(OSError, match=r"^cannot write .*a\.png \(No space left on device\); make room or choose"):
            put()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red apple, flat style", "a-red-apple-flat-style-s3"),
        ("../../etc/passwd", "etc-passwd-s3"),
        ("???", "picture-s3"),
        ("CON\0\n|<>", "con-s3"),
        ("Käse 乳酪", "käse-乳酪-s3"),
    ],
)
def test_names_are_safe(prompt: str, name: str) -> None:
    assert picture.stem(prompt, 3) == name


def test_long_names_stay_below_what_file_systems_take(tmp_path: Path) -> None:
    name = picture.stem("乳酪" * 300, 2**62)
    assert len(f".{name}-999.png".encode()) < 200
    assert picture.save(b"x", tmp_path, name).is_file()
