"""Sizes, presets, pictures to start from, sheets of guidances, previews and a safety classifier, with a tiny model."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from krea_sampler import picture
from krea_sampler.cli import app
from krea_sampler.compose import Setup, artist
from krea_sampler.drawing import draw as drawings
from krea_sampler.order import Order, Weighted
from krea_sampler.safety import Refused
from PIL import Image
from typer.testing import CliRunner


def run(code: int, *words: object) -> tuple[list[str], str]:
    """Lines on standard output, and all of standard error."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout.splitlines(), result.stderr


def draw(model: Path, out: Path, *words: object) -> list[Path]:
    return [Path(line) for line in run(0, *words, "--model", model, "--out", out)[0]]


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("--size", "32x16"), (32, 16)),
        (("--width-px", 24, "--height-px", 40), (24, 40)),
        (("--height-px", 8), (16, 8)),
        (("--size", "24"), (24, 24)),
    ],
)
def test_sizes_are_drawn_and_repeated(
    model: Path, tmp_path: Path, words: tuple[object, ...], size: tuple[int, int]
) -> None:
    (path,) = draw(model, tmp_path, "a fox", *words)
    assert picture.pixels(path).size == size
    lines, note = run(0, "--from-png", path, "--model", model, "--out", tmp_path)
    assert Path(lines[0]).read_bytes() == path.read_bytes()
    assert "identical" in note
    (wider,) = draw(model, tmp_path, "--from-png", path, "--width-px", 48)
    assert picture.pixels(wider).size == (48, size[1])


def test_a_preset_changes_steps_guidance_and_times(model: Path, tmp_path: Path) -> None:
    (turbo,) = draw(model, tmp_path, "a fox", "--preset", "turbo")
    assert picture.parameters(turbo).items() >= {"steps": 8, "guidance": 0.0, "preset": "turbo"}.items()
    (same,) = draw(model, tmp_path, "a fox", "--steps", 8, "--guidance", 0)
    assert picture.pixels(turbo).tobytes() != picture.pixels(same).tobytes()  # mu 1.15
    lines, note = run(0, "--from-png", turbo, "--model", model, "--out", tmp_path)
    assert "identical" in note
    assert Path(lines[0]).read_bytes() == turbo.read_bytes()
    (again,) = draw(model, tmp_path, "--from-png", same, "--preset", "turbo")
    assert again.read_bytes() == turbo.read_bytes()


def test_number_formats_are_remembered(model: Path, tmp_path: Path) -> None:
    (half,) = draw(model, tmp_path, "a fox", "--dtype", "bfloat16")
    (full,) = draw(model, tmp_path, "a fox", "--dtype", "float32")
    assert picture.pixels(half).tobytes() != picture.pixels(full).tobytes()
    assert picture.parameters(half)["dtype"] == "bfloat16"
    assert "identical" in run(0, "--from-png", half, "--model", model, "--out", tmp_path)[1]


def test_less_memory(model: Path, tmp_path: Path) -> None:
    (plain,) = draw(model, tmp_path, "a fox")
    (waiting,) = draw(model, tmp_path, "a fox", "--blocks", "memory")
    assert picture.pixels(waiting).tobytes() == picture.pixels(plain).tobytes()
    (packed,) = draw(model, tmp_path, "a fox", "--quantise", "int8")
    assert picture.pixels(packed).tobytes() != picture.pixels(plain).tobytes()
    assert picture.parameters(packed)["quantise"] == "int8"
    assert "identical" in run(0, "--from-png", packed, "--model", model, "--out", tmp_path)[1]
    assert 'quantisation "int3" is unknown; use "int8" or "fp8"' in run(2, "a fox", "--quantise", "int3")[1]


def test_a_negative_prompt_acts_and_is_remembered(model: Path, tmp_path: Path) -> None:
    (without,) = draw(model, tmp_path, "a fox")
    (path,) = draw(model, tmp_path, "a fox", "--negative", "grey fog")
    assert picture.pixels(path).tobytes() != picture.pixels(without).tobytes()
    assert picture.parameters(path)["negative"] == "grey fog"
    assert "identical" in run(0, "--from-png", path, "--model", model, "--out", tmp_path)[1]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.radial_gradient("L").convert("RGB").resize((300, 150)).save(path)
    return path


def test_a_picture_to_start_from(model: Path, photo: Path, tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "a fox", "--image", photo, "--strength", 0.4, "--steps", 10)
    assert picture.pixels(path).size == (24, 8)  # the shape of the photo at about 16 x 16 pixels, in units of 8
    assert picture.parameters(path)["image"].items() >= {"name": "photo.png", "strength": 0.4}.items()
    again = ("--from-png", path, "--model", model, "--out", tmp_path)
    lines, note = run(0, *again, "--image", photo)  # the strength comes from the picture
    assert "identical" in note
    assert Path(lines[0]).read_bytes() == path.read_bytes()
    assert "--image photo.png --strength 0.4" in run(2, *again)[1]
    assert "--image photo.png --strength 0.4" in run(2, *again, "--image", photo, "--strength", 0.5)[1]
    Image.linear_gradient("L").save(photo)
    assert "a file of the same content" in run(2, *again, "--image", photo)[1]


def test_a_picture_to_start_from_of_an_impossible_shape(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 400_000)).save(tmp_path / "thread.png")
    _, error = run(2, "a fox", "--image", tmp_path / "thread.png", "--model", model, "--out", tmp_path / "out")
    assert "has 1x400000 px, a shape that would be drawn 8x10120; crop it, or give the --size to draw" in error


def test_full_strength_forgets_the_picture(model: Path, photo: Path, tmp_path: Path) -> None:
    size = ("--size", "24x16", "--steps", 10)
    (plain,) = draw(model, tmp_path, "a fox", *size)
    (full,) = draw(model, tmp_path, "a fox", *size, "--image", photo, "--strength", 1)
    (faint,) = draw(model, tmp_path, "a fox", *size, "--image", photo, "--strength", 0.1)
    assert picture.pixels(full).tobytes() == picture.pixels(plain).tobytes() != picture.pixels(faint).tobytes()


def test_pictures_to_start_from_that_cannot_work(model: Path, photo: Path, tmp_path: Path) -> None:
    at = ("a fox", "--model", model, "--out", tmp_path / "out")
    text = tmp_path / "text"
    text.write_text("hello")
    assert "is not a readable picture" in run(2, *at, "--image", text)[1]
    assert "strength 1.5" in run(2, *at, "--image", photo, "--strength", 1.5)[1]
    assert "leaves none of 3 steps" in run(2, *at, "--image", photo, "--strength", 0.2)[1]
    assert list((tmp_path / "out").glob("*")) == []


def test_a_sheet_of_seeds_guidances_and_prompts(model: Path, tmp_path: Path) -> None:
    words = ("a fox", "a rocket", "--n", 3, "--guidance", 0, "--guidance", 2.5)
    (sheet,) = draw(model, tmp_path, *words, "--grid", "--size", "16x8")
    found = picture.parameters(sheet)
    assert (found["guidance"], found["guidances"]) == (None, [0.0, 2.5])
    width, height = picture.pixels(sheet).size
    assert width > 3 * 128
    assert height > 4 * 64
    assert "identical" in run(0, "--from-png", sheet, "--model", model, "--out", tmp_path)[1]
    singles = draw(model, tmp_path / "each", *words, "--size", "16x8")
    assert len(singles) == 12
    assert [path.name for path in singles[2:5]] == ["a-fox-s2-g0.png", "a-fox-s0-g2.5.png", "a-fox-s1-g2.5.png"]
    (alone,) = draw(model, tmp_path / "alone", "a fox", "--seed", 1, "--guidance", 2.5, "--size", "16x8")
    assert alone.read_bytes() == singles[4].read_bytes()


def test_previews_are_shown_while_it_draws(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, replace = [], os.replace

    def watched(source: Path, path: Path) -> None:
        replace(source, path)
        seen.append((path.name, picture.pixels(path).size))

    monkeypatch.setattr(os, "replace", watched)
    at = ("--model", model, "--out", tmp_path / "out")
    lines, note = run(0, "a fox", "--preview", "--steps", 9, "--size", "32x16", *at)
    assert "preview: " in note
    assert seen
    assert set(seen) == {("a-fox-s0-preview.png", (32, 16))}
    assert os.listdir(tmp_path / "out") == ["a-fox-s0.png"]
    plain = draw(model, tmp_path, "a fox", "--steps", 9, "--size", "32x16")[0]
    assert Path(lines[0]).read_bytes() == plain.read_bytes()


GUARD = '''
class Guard:
    """Refuses one word, and pictures that are wide."""

    def check_prompt(self, prompt):
        return "it names a villain" if "villain" in prompt else None

    def check_image(self, image):
        return "it is too wide" if image.width > 2 * image.height else None

guard = Guard()
mute = object()
'''


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the current folder, which holds a classifier."""
    (tmp_path / "krea_guard_of_a_test.py").write_text(GUARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "krea_guard_of_a_test"
    sys.modules.pop("krea_guard_of_a_test", None)


def test_what_the_classifier_refuses_is_neither_drawn_nor_written(model: Path, guard: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for inside in ("Guard", "guard"):
        at = ("--model", model, "--out", out, "--safety", f"{guard}:{inside}", "--preview")
        _, error = run(3, "a fox", "a villain", *at)
        assert error == "refused: the prompt 'a villain' was refused: it names a villain\n"
        _, error = run(3, "a fox", "--size", "40x16", *at)
        assert error == "refused: the picture of 'a fox' with seed 0 was refused: it is too wide\n"
        assert run(3, "a fox", "a cat", "--size", "40x16", "--grid", *at)[0] == []
        assert list(out.glob("*")) == []
    look = tmp_path / "wide.png"
    Image.new("RGB", (300, 100)).save(look)
    assert "the picture to start from was refused" in run(3, "a fox", "--image", look, "--size", "16", *at)[1]
    assert list(out.glob("*")) == []
    lines, _ = run(0, "a fox", *at)
    assert Path(lines[0]).read_bytes() == draw(model, tmp_path / "free", "a fox")[0].read_bytes()


def test_expansions_are_checked_as_well_as_wishes(model: Path, guard: str, tmp_path: Path) -> None:
    at = ("--model", model, "--out", tmp_path / "out", "--safety", f"{guard}:Guard")
    assert "names a villain" in run(3, "a villain", "--expand", "low", *at)[1]


def test_a_module_without_a_classifier(model: Path, guard: str, tmp_path: Path) -> None:
    at = ("a fox", "--model", model, "--out", tmp_path / "out", "--safety")
    assert "has no gone for" in run(2, *at, f"{guard}:gone")[1]
    assert "write module:function" in run(2, *at, guard)[1]
    (tmp_path / "krea_guard_of_a_test.py").write_text("def make():\n    return 3\n")
    sys.modules.pop(guard, None)
    assert "needs check_prompt and check_image" in run(2, *at, f"{guard}:make")[1]


def test_the_hook_from_python(model: Path) -> None:
    class Grumpy:
        def check_prompt(self, prompt: str) -> str | None:
            return None

        def check_image(self, image: Image.Image) -> str | None:
            return "no pictures today"

    ready = artist(Setup(model=model))
    with pytest.raises(Refused, match="the picture of 'a fox' with seed 4 was refused: no pictures today"):
        next(drawings(ready, Order(prompts=("a fox",), seeds=(4,)), safety=Grumpy()))
    seen: list[Image.Image] = []
    with pytest.raises(Refused):
        next(drawings(ready, Order(prompts=("a fox",), steps=9), on_preview=seen.append, safety=Grumpy()))
    assert seen == []


def test_a_picture_that_is_not_a_number_is_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krea_model.testing import FakeTextEncoder

    whole = FakeTextEncoder._word
    monkeypatch.setattr(FakeTextEncoder, "_word", lambda self, word: whole(self, word) * float("nan"))
    _, error = run(1, "a fox", "--model", model, "--out", tmp_path / "out")
    assert error.startswith("error: a picture of 16x16 px came out as NaN; load the model in bfloat16")
    assert list((tmp_path / "out").glob("*")) == []


def test_settings_of_an_artist_are_checked_before_the_model_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="strength 0"):
        Setup(image=Weighted(path=tmp_path / "a.png", strength=0.0))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="shows no such GPU"):
            artist(Setup(device="cuda"))
