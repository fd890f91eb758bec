"""Parameters that somebody changed: one sentence, whatever they are."""

from pathlib import Path
from typing import Any

import pytest
from krea_sampler import picture, record
from krea_sampler.cli import app
from krea_sampler.order import Order
from typer.testing import CliRunner

WRONG: list[tuple[str, Any]] = [
    ("steps", 2.5),
    ("steps", True),
    ("steps", "three"),
    ("negative", None),
    ("negative", [1]),
    ("model", [1]),
    ("model", "x"),
    ("image", "x"),
    ("loras", "abc"),
    ("loras", ["x"]),
    ("preset", 3),
    ("dtype", ["float32"]),
    ("wishes", 5),
    ("wishes", [5]),
    ("seeds", [float("inf")]),
    ("seeds", [0.5]),
    ("seeds", "012"),
    ("prompts", "fox"),
    ("grid", "yes"),
    ("threads", "two"),
]


@pytest.fixture
def drawn(model: Path, tmp_path: Path) -> Path:
    words = ["a fox", "--model", str(model), "--steps", "1", "--out", str(tmp_path)]
    return Path(CliRunner().invoke(app, words).stdout.strip())


def test_every_wrong_value_is_one_sentence(drawn: Path, model: Path, tmp_path: Path) -> None:
    image, found = picture.pixels(drawn), picture.parameters(drawn)
    for number, (name, value) in enumerate(WRONG):
        path = picture.save(picture.encode(image, found | {name: value}), tmp_path, f"changed-{number}")
        words = ["--from-png", str(path), "--model", str(model), "--out", str(tmp_path / "none")]
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, result.stdout) == (2, ""), (name, value, result.output)
        assert result.stderr.startswith("error: the parameters in"), (name, value)
        assert f"damaged: {name} is" in result.stderr.replace("\n", " "), (name, value)


def test_json_that_is_too_deep_is_damaged() -> None:
    for text in ("[" * 200_000, "{", "[]", "3"):
        with pytest.raises(ValueError, match="they are no JSON"):
            record.parsed(text)


def test_prompts_that_are_no_text_are_refused() -> None:
    for prompt, negative in (("\ud800 fox", ""), ("a fox", "fo\udcff")):
        with pytest.raises(ValueError, match="is no Unicode text; type it again"):
            Order(prompts=(prompt,), negative=negative)


def test_the_right_values_pass(drawn: Path) -> None:
    found = picture.parameters(drawn)
    assert record.checked(found) is found
    assert {name for name in record.KINDS if name not in found} == set()
