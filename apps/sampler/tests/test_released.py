"""The command on a model in the layout of the released one: a tiny pipeline folder, a checkpoint, an id of the hub.

Needs krea-model[text,vae].
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from krea_model import hub, lora, lora_files, weights
from krea_model.configs import tiny
from krea_model.testing import tiny_model
from krea_model.testing_folder import tiny_folder
from krea_sampler import picture
from krea_sampler.cli import app
from typer.testing import CliRunner

SIZE = ("--size", "32x24", "--steps", 3)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("released") / "Krea-2-Tiny", distilled=True)


def run(code: int, *words: object) -> tuple[list[str], str]:
    """Lines on standard output, and all of standard error."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout.splitlines(), result.stderr


def draw(model: object, out: Path, *words: object) -> Path:
    (line,), _ = run(0, *words, "--model", model, "--out", out)
    return Path(line)


def test_it_draws_and_repeats_bit_by_bit(released: Path, tmp_path: Path) -> None:
    path = draw(released, tmp_path, "a red cat", "--size", "40x24", "--seed", 5)
    found = picture.parameters(path)
    assert picture.pixels(path).size == (40, 24)
    assert found.items() >= {"steps": 8, "guidance": 0.0, "dtype": None}.items()  # Turbo, by the folder's mark
    assert found["model"]["name"] == "Krea-2-Tiny"
    assert len(found["model"]["sha256"]) == 64
    moved = shutil.copytree(released, tmp_path / "moved")
    lines, note = run(0, "--from-png", path, "--model", moved, "--out", tmp_path)
    assert "identical" in note
    assert picture.pixels(Path(lines[0])).tobytes() == picture.pixels(path).tobytes()
    full = draw(released, tmp_path, "a red cat", "--size", "40x24", "--seed", 5, "--dtype", "float32")
    assert picture.pixels(full).tobytes() != picture.pixels(path).tobytes()  # the encoder is read in bfloat16 else
    assert "identical" in run(0, "--from-png", full, "--model", moved, "--out", tmp_path)[1]


def test_raw_and_turbo_from_one_folder(released: Path, tmp_path: Path) -> None:
    raw = draw(released, tmp_path, "a red cat", *SIZE, "--preset", "raw", "--negative", "grey")
    turbo = draw(released, tmp_path, "a red cat", *SIZE)
    assert picture.parameters(raw).items() >= {"guidance": 3.5, "preset": "raw"}.items()
    assert picture.pixels(raw).tobytes() != picture.pixels(turbo).tobytes()
    assert "identical" in run(0, "--from-png", raw, "--model", released, "--out", tmp_path)[1]


def test_another_checkpoint_is_noticed(released: Path, tmp_path: Path) -> None:
    path = draw(released, tmp_path, "a red cat", *SIZE)
    other = tiny_folder(tmp_path / "other", seed=1, distilled=True)
    assert "not by other" in run(2, "--from-png", path, "--model", other, "--out", tmp_path)[1]


def test_a_checkpoint_file_with_its_other_parts(released: Path, tmp_path: Path) -> None:
    model = weights.load(released)
    weights.save(tmp_path / "turbo.safetensors", model.state_dict(), model.config)
    parts = ("--encoder", released, "--autoencoder", released)
    one = draw(tmp_path / "turbo.safetensors", tmp_path, "a red cat", *SIZE, *parts)
    two = draw(released, tmp_path, "a red cat", *SIZE)
    assert picture.pixels(one).tobytes() == picture.pixels(two).tobytes()
    error = run(2, "a red cat", "--model", tmp_path / "turbo.safetensors", "--out", tmp_path)[1]
    assert "is a transformer alone" in error


def test_an_id_of_the_hub(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(
        name: str, *, revision: None, cache_dir: None, local_files_only: bool, allow_patterns: list[str]
    ) -> str:
        assert (name, local_files_only) == ("krea/Krea-2-Turbo", False)
        assert "*/*.safetensors" in allow_patterns
        return str(released)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    path = draw("krea/Krea-2-Turbo", tmp_path, "a red cat", *SIZE)
    assert picture.parameters(path)["model"]["name"] == "krea/Krea-2-Turbo"
    assert picture.pixels(path).tobytes() == picture.pixels(draw(released, tmp_path, "a red cat", *SIZE)).tobytes()
    lines, note = run(0, "--from-png", path, "--model", "krea/Krea-2-Turbo", "--out", tmp_path)
    assert "identical" in note
    assert Path(lines[0]).read_bytes() == path.read_bytes()


def loud(path: Path, layers: int) -> Path:
    model = tiny_model(0, tiny())
    lora.add(model, ["wq", "mlp.down"], rank=2)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, lora.Adapted):
                layer.lora_B.fill_(0.3)
    found = lora.extract(model)
    if layers == 3:
        found["blocks.2.attn.wq"] = found["blocks.1.attn.wq"]
    lora_files.write(path, found, "diffusers")
    return path


def test_loras_act_stack_and_are_remembered(released: Path, tmp_path: Path) -> None:
    file = loud(tmp_path / "loud.safetensors", 2)
    bare = draw(released, tmp_path, "a red cat", *SIZE)
    half = draw(released, tmp_path, "a red cat", *SIZE, "--lora", f"{file}:0.5")
    twice = draw(released, tmp_path, "a red cat", *SIZE, "--lora", f"{file}:0.25", "--lora", f"{file}:0.25")
    assert picture.pixels(half).tobytes() != picture.pixels(bare).tobytes()
    far = [abs(a - b) for a, b in zip(picture.pixels(half).tobytes(), picture.pixels(twice).tobytes(), strict=True)]
    assert max(far) <= 1
    again = ("--from-png", half, "--model", released, "--out", tmp_path)
    assert "identical" in run(0, *again, "--lora", f"{file}:0.5")[1]
    assert "--lora loud.safetensors:0.5" in run(2, *again)[1]


def test_a_lora_for_another_model_is_one_sentence(released: Path, tmp_path: Path) -> None:
    file = loud(tmp_path / "deep.safetensors", 3)
    _, error = run(2, "a fox", *SIZE, "--lora", file, "--model", released, "--out", tmp_path / "out")
    assert "this LoRA is for another model" in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path / "out") == []


def test_what_does_not_fit_into_the_window_is_said_once(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " ".join(["a red cat and the sea at night"] * 90) + " and the very last words"
    (_, _), error = run(0, long, *SIZE, "--n", 2, "--model", released, "--out", tmp_path)
    assert error.count("very last words") == 1
    assert "too long" in error
    assert "very last words" not in run(0, "a red cat", *SIZE, "--model", released, "--out", tmp_path)[1]


def test_folders_without_weights_and_damaged_ones(released: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    hollow = shutil.copytree(released, tmp_path / "hollow")
    file = hollow / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert "truncated or not a safetensors file" in run(2, "a fox", "--model", hollow, *out)[1]
    file.unlink()
    assert "should hold one checkpoint but has none" in run(2, "a fox", "--model", hollow, *out)[1]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty is no model folder" in run(2, "a fox", "--model", empty, *out)[1]
    path = draw(released, tmp_path, "a red cat", *SIZE)
    path.write_bytes(path.read_bytes()[:300])
    assert "not a readable PNG" in run(2, "--from-png", path, "--model", released, *out)[1]
    assert "sides must be multiples of 8" in run(2, "a fox", "--size", "100x64", "--model", released, *out)[1]
    assert not list((tmp_path / "out").glob("*"))


def test_words_that_do_not_fit_are_quoted_in_short(released: Path, tmp_path: Path) -> None:
    prompt = "a red cat in the snow " * 150
    _, note = run(0, prompt, *SIZE, "--model", released, "--out", tmp_path)
    assert "tokens too long; not encoded: " in note
    assert " words) ... " in note
    assert note.rstrip().endswith("a red cat in the snow '")
    assert note.count("\n") == 1
    assert len(note) < 220
