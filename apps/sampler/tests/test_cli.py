"""The command as people type it, with a tiny model: pictures, repeats, sheets, errors in one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import krea_style
import pytest
import torch
import typer
from krea_model import lora, lora_files
from krea_model.pipeline import Pipeline
from krea_model.testing import FakeTextEncoder, fill, tiny_model
from krea_sampler import compose, picture
from krea_sampler.cli import app
from krea_style.features import WIDTHS
from PIL import Image
from typer.testing import CliRunner

FLAGS = {
    "draw": {
        *("--seed", "--n", "--size", "--width-px", "--height-px", "--side-px", "--steps", "--guidance", "--negative"),
        *("--from-png", "--model", "--encoder", "--autoencoder", "--preset", "--dtype", "--device"),
        *("--quantise", "--blocks"),
        *("--lora", "--image", "--strength", "--style", "--style-module", "--expand"),
        *("--out", "--grid", "--preview", "--safety"),
    },
    "serve": {
        *("--model", "--encoder", "--autoencoder", "--preset", "--dtype", "--device", "--quantise", "--blocks"),
        *("--lora", "--style", "--style-module", "--out", "--host", "--port", "--open", "--safety"),
    },
    "show": set(),
}


def test_a_new_flag_is_a_decision() -> None:
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    assert {
        name: {flag for one in command.params for flag in one.opts if flag.startswith("--")}
        for name, command in commands.items()
    } == FLAGS


def run(code: int, *words: object) -> tuple[list[str], str]:
    """Lines on standard output, and all of standard error."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout.splitlines(), result.stderr


def draw(model: Path, out: Path, *words: object) -> list[Path]:
    return [Path(line) for line in run(0, *words, "--model", model, "--out", out)[0]]


def test_a_prompt_alone_is_enough(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compose, "demo_model", lambda: model)
    (line,), _ = run(0, "a red apple, flat style")
    assert line == "a-red-apple-flat-style-s0.png"
    with Image.open(tmp_path / line) as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")


def test_flags_may_come_first_and_help_is_that_of_drawing() -> None:
    lines, _ = run(0, "--help")
    assert any("--from-png" in line for line in lines)
    assert any('krea-sample "a red apple, flat style"' in line for line in lines)


def test_the_picture_holds_all_that_made_it(model: Path, tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "--seed", 7, "--steps", 2, "--guidance", 0.5, "--side-px", 24, "a fox")
    found = picture.parameters(path)
    wanted = {"prompts": ["a fox"], "seeds": [7], "steps": 2, "guidance": 0.5, "side_px": 24, "grid": False}
    wanted |= {"width_px": None, "height_px": None, "negative": "", "dtype": None, "image": None, "preset": None}
    assert found.items() >= wanted.items()
    assert found["model"]["name"] == "model 0"
    assert len(found["model"]["sha256"]) == 64
    assert json.loads("\n".join(run(0, "show", path)[0])) == found
    assert str(tmp_path) not in json.dumps(found)


def test_defaults_of_the_model_are_written_down(model: Path, tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "a fox")
    assert picture.parameters(path).items() >= {"steps": 3, "guidance": 1.0, "side_px": 16, "seeds": [0]}.items()


def test_a_picture_is_repeated_byte_by_byte(model: Path, tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "--seed", 3, "a fox")
    lines, note = run(0, "--from-png", path, "--model", model, "--out", tmp_path)
    again = Path(lines[0])
    assert again != path
    assert again.read_bytes() == path.read_bytes()
    assert f"identical to {path}" in note


def test_a_picture_does_not_depend_on_what_else_is_drawn(model: Path, tmp_path: Path) -> None:
    many = draw(model, tmp_path / "many", "a fox", "a rocket at night", "--seed", 5, "--n", 3)
    assert [path.name for path in many[3:]] == [f"a-rocket-at-night-s{seed}.png" for seed in (5, 6, 7)]
    (alone,) = draw(model, tmp_path / "alone", "a rocket at night", "--seed", 6)
    assert alone.read_bytes() == many[4].read_bytes()
    assert len({path.read_bytes() for path in many}) == 6


def test_flags_change_parts_of_a_repeated_picture(model: Path, tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "--steps", 2, "a fox")
    lines, note = run(0, "--from-png", path, "--model", model, "--out", tmp_path, "--seed", 4, "--n", 2)
    assert "identical" not in note
    (direct,) = draw(model, tmp_path, "--steps", 2, "--seed", 5, "a fox")
    assert Path(lines[1]).read_bytes() == direct.read_bytes()


def test_a_sheet_is_one_picture_that_can_be_repeated(model: Path, tmp_path: Path) -> None:
    sheets = draw(model, tmp_path, "a fox", "a rocket", "--n", 3, "--grid")
    assert [path.name for path in sheets] == ["a-fox-s0-grid.png"]
    found = picture.parameters(sheets[0])
    assert (found["prompts"], found["seeds"], found["grid"]) == (["a fox", "a rocket"], [0, 1, 2], True)
    _, note = run(0, "--from-png", sheets[0], "--model", model, "--out", tmp_path)
    assert "identical" in note


def test_a_difference_is_told_not_hidden(model: Path, tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "a fox")
    image = picture.pixels(path).convert("RGB")
    image.paste(Image.eval(image.crop((0, 0, 1, 1)), lambda level: level ^ 4), (0, 0))
    path.write_bytes(picture.encode(image, picture.parameters(path)))
    _, note = run(0, "--from-png", path, "--model", model, "--out", tmp_path)
    assert "by up to 4 of 255" in note


def test_another_model_is_noticed(model: Path, make_model: Callable[[int], Path], tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "a fox")
    _, error = run(2, "--from-png", path, "--model", make_model(1), "--out", tmp_path)
    assert "drawn by model 0" in error
    assert "not by model 1" in error


def test_a_moved_model_is_still_the_same(model: Path, tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "a fox")
    shutil.move(model, tmp_path / "elsewhere")
    assert "identical" in run(0, "--from-png", path, "--model", tmp_path / "elsewhere", "--out", tmp_path)[1]


def test_a_lora_acts_and_is_remembered(model: Path, tmp_path: Path) -> None:
    adapted = tiny_model(seed=0)
    lora.add(adapted, ["wq", "mlp.down"], rank=2)
    with torch.no_grad():
        for layer in adapted.modules():
            if isinstance(layer, lora.Adapted):
                layer.lora_B.fill_(0.5)
    file = tmp_path / "loud.safetensors"
    lora_files.write(file, lora.extract(adapted))
    (bare,) = draw(model, tmp_path / "bare", "a fox")
    (none,) = draw(model, tmp_path / "none", "a fox", "--lora", f"{file}:0")
    (half,) = draw(model, tmp_path / "half", "a fox", "--lora", f"{file}:0.5")
    assert picture.pixels(bare).tobytes() == picture.pixels(none).tobytes() != picture.pixels(half).tobytes()
    assert picture.parameters(half)["loras"][0].items() >= {"name": "loud.safetensors", "strength": 0.5}.items()
    again = ("--from-png", half, "--model", model, "--out", tmp_path)
    assert "identical" in run(0, *again, "--lora", f"{file}:0.5")[1]
    assert "--lora loud.safetensors:0.5" in run(2, *again)[1]
    assert "--lora loud.safetensors:0.5" in run(2, *again, "--lora", f"{file}:0.6")[1]


@pytest.fixture
def style_module(tmp_path: Path) -> Path:
    module = krea_style.StyledMMDiT(tiny_model(seed=0), krea_style.StyleConfig(levels=WIDTHS))
    fill(module, seed=1)
    path = tmp_path / "style.safetensors"
    krea_style.save(module, path)
    return path


def test_a_style_acts_and_is_remembered(model: Path, style_module: Path, tmp_path: Path) -> None:
    look = tmp_path / "look.png"
    Image.radial_gradient("L").convert("RGB").save(look)
    (bare,) = draw(model, tmp_path / "bare", "a fox")
    styled = ("--style", look, "--style-module", style_module)
    (strong,) = draw(model, tmp_path / "strong", "a fox", *styled)
    (none,) = draw(model, tmp_path / "none", "a fox", "--style", f"{look}:0", "--style-module", style_module)
    assert picture.pixels(bare).tobytes() == picture.pixels(none).tobytes() != picture.pixels(strong).tobytes()
    assert picture.parameters(strong)["styles"][0].items() >= {"name": "look.png", "strength": 0.6}.items()
    again = ("--from-png", strong, "--model", model, "--out", tmp_path)
    assert "identical" in run(0, *again, *styled)[1]
    assert "--style look.png:0.6" in run(2, *again)[1]


def test_an_expanded_prompt_is_drawn_and_the_wish_is_kept(model: Path, tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "draw me a red apple please", "--expand", "medium")
    found = picture.parameters(path)
    assert found["wishes"] == ["draw me a red apple please"]
    assert found["prompts"][0].startswith("a red apple, ")
    assert path.name.startswith("draw-me-a-red-apple")
    _, note = run(0, "--from-png", path, "--model", model, "--out", tmp_path)
    assert "identical" in note


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no prompt"),
        (("",), "empty prompt"),
        (("a fox", "--side-px", "17"), "17x17 px: sides must be multiples of 8; the nearest widths are 16 and 24"),
        (("a fox", "--size", "16x20"), "16x20 px: sides must be multiples of 8; the nearest heights are 16 and 24"),
        (("a fox", "--size", "big"), "size 'big'"),
        (("a fox", "--size", "16", "--width-px", "16"), "the size is given twice"),
        (("a fox", "--preset", "fast"), "there is no preset 'fast'; use raw or turbo"),
        (("a fox", "--dtype", "int4"), "number format 'int4'; use float32, bfloat16, float16"),
        (("a fox", "--device", "abacus"), "device 'abacus'"),
        (("a fox", "--strength", "0.5"), "without a picture to start from"),
        (("a fox", "--image", "gone.jpg"), "no file at gone.jpg"),
        (("a fox", "--safety", "nowhere"), "write module:function"),
        (("a fox", "--safety", "nowhere_at_all:x"), "there is no module nowhere_at_all"),
        (("a fox", "--steps", "0"), "0 steps; use a whole number from 1 to 1000"),
        (("a fox", "--steps", "1000000000"), "1000000000 steps"),
        (("a fox", "--steps", "many"), "--steps 'many'; write a whole number; see "),
        (("a fox", "--n", "0"), "0 pictures of each prompt; ask for 1 to 10000 (--n)"),
        (("a fox", "--n", "-3"), "-3 pictures of each prompt"),
        (("a fox", "--n", "1000000000"), "1000000000 pictures of each prompt"),
        (("a fox", "--n", "1.5"), "--n '1.5'; write a whole number"),
        (("a fox", "--n", "9" * 5000), "(5000 characters)"),
        (("a fox", "--guidance", "a lot"), "--guidance 'a lot'; write a number"),
        (("a fox", "--guidance", "nan"), "guidance nan; use a number from 0 (none) to 100"),
        (("a fox", "--guidance", "1e9"), "guidance 1000000000.0; use a number from 0 (none) to 100"),
        (("a fox", "--strength", "x"), "--strength 'x'; write a number"),
        (("a fox", "--expand", "much"), "--expand 'much'; use low, medium, high"),
        (("a fox", "--size", "100000"), "a side of 100000 px; use at most 8192: a square of that is 262144 tokens"),
        (("a fox", "--size", "16x99999999"), "a side of 99999999 px; use at most 8192"),
        (("a fox", "--side-px", "8192"), "1048576 tokens of this model; draw smaller"),
        (("a fox", "--size", "1024", "--n", "100", "--grid"), "a sheet of 100 pictures would have 103006x1076 px"),
        (("a fox", "--sed", "3"), "no such option: --sed (possible options: --seed, "),
        (("a fox", "--grid=1"), "option '--grid' does not take a value"),
        (("a fox", "--seed", "-1"), "between 0 and"),
        (("a fox", "--out", "fox.jpg"), "pictures are PNG"),
        (("a fox", "--n", "2", "--out", "fox.png"), "do not fit into"),
        (("a fox", "--from-png", "gone.png"), "no file at gone.png"),
        (("a fox", "--lora", "gone.safetensors:0.5"), "no file at gone.safetensors"),
        (("a fox", "--style-module", "gone.safetensors"), "no style module at"),
    ],
)
def test_wrong_input_is_one_red_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines, error = run(2, *words, "--model", model)
    assert lines == []
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("serve", "--port", "99999"), "port 99999; use a number from 1 to 65535, or 0 for any that is free"),
        (("serve", "--port", "http"), "--port 'http'; write a whole number; see "),
        (("show",), "missing argument 'png'; see "),
        (("show", "a.png", "b.png"), "unexpected extra argument"),
        (("a fox", "--n"), "option '--n' requires an argument; see "),
    ],
)
def test_flags_that_cannot_be_read_are_one_red_line(words: tuple[str, ...], says: str) -> None:
    lines, error = run(2, *words)
    assert lines == []
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_word_that_looks_like_a_command_is_drawn_with_a_note(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compose, "demo_model", lambda: model)
    for word, note in (("sevre", "krea-sample serve"), ("help", "krea-sample --help"), ("snow", ""), ("fox", "")):
        lines, said = run(0, word)
        assert lines == [f"{word}-s0.png"]
        assert said == (f"'{word}' is drawn; for the command write {note}\n" if note else "")


def test_files_that_are_not_what_they_should_be_are_named(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    at = ("--model", model, "--out", tmp_path / "out")
    assert "is a text, no weights; name a .safetensors file" in run(2, "a fox", "--lora", text, *at)[1]
    assert "needs a trained style module" in run(2, "a fox", "--style", text, *at)[1]
    assert "not a whole safetensors file" in run(2, "a fox", "--style", text, "--style-module", text, *at)[1]
    assert "not a readable PNG" in run(2, "--from-png", text, *at)[1]
    image = Image.linear_gradient("L")
    image.save(tmp_path / "plain.png")
    assert "holds no parameters" in run(2, "--from-png", tmp_path / "plain.png", *at)[1]
    assert list((tmp_path / "out").glob("*")) == []


def test_a_picture_that_is_no_style(model: Path, style_module: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    at = ("--model", model, "--out", tmp_path / "out", "--style-module", style_module)
    assert "is not a readable picture" in run(2, "a fox", "--style", text, *at)[1]


def test_a_prompt_and_a_png_do_not_go_together(model: Path, tmp_path: Path) -> None:
    (path,) = draw(model, tmp_path, "a fox")
    assert "brings its own prompt" in run(2, "a rocket", "--from-png", path, "--model", model)[1]


def test_a_model_that_is_no_model_is_said_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a fox in the snow")
    Image.linear_gradient("L").save(tmp_path / "t.png")
    for name, says in (("t.txt", "a text"), ("t.png", "a picture")):
        _, error = run(2, "a fox", "--model", tmp_path / name, "--out", tmp_path / "out")
        assert f"{name} is {says}, no weights; name a .safetensors file" in error
        assert error.count("\n") == 1


@pytest.mark.slow  # processes of their own that import everything
@pytest.mark.skipif(os.name == "nt", reason="pipes end in another way")
def test_a_reader_that_leaves_ends_it_quietly_and_a_full_disk_is_said(tmp_path: Path) -> None:
    path = picture.save(picture.encode(Image.new("RGB", (4, 4)), {"prompts": ["a fox"] * 9999}), tmp_path, "a")
    words = [sys.executable, "-m", "krea_sampler", "show", str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "{\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert ended.returncode == 1
        assert ended.stderr.startswith("error: cannot write to standard output (No space left on device); make room")
        assert ended.stderr.count("\n") == 1


def test_a_folder_without_a_model_is_said_by_its_name(tmp_path: Path) -> None:
    _, error = run(2, "a fox", "--model", tmp_path / "nowhere", "--out", tmp_path)
    assert "nowhere is no model folder" in error


def test_too_little_memory_is_explained(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(FakeTextEncoder, "__call__", greedy)
    _, error = run(1, "a fox", "--model", model, "--out", tmp_path, "--side-px", 32)
    assert error.startswith("error: not enough memory for a picture of 32x32 px; draw smaller")
    assert error.count("\n") == 1
    assert list(tmp_path.rglob("*.png")) == []


def test_what_is_done_stays_when_something_fails_later(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = Pipeline.draw, []

    def failing(*args: object, **settings: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the power went")
        return whole(*args, **settings)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Pipeline, "draw", failing)
    lines, error = run(1, "a fox", "--n", 4, "--model", model, "--out", tmp_path, "--preview")
    assert "the power went" in error
    assert [Path(line).name for line in lines] == ["a-fox-s0.png", "a-fox-s1.png"]
    assert all(picture.parameters(Path(line)) for line in lines)
    assert len(list(tmp_path.glob("*"))) == 3  # the two and the model


def test_debug_shows_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KREA_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["draw"]).exception, ValueError)
