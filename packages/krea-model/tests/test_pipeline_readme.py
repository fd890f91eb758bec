"""The README's examples as somebody runs them who has this package alone: checkpoint in, picture out."""

import re
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)


def run(block: str) -> None:
    exec(compile(block, str(README), "exec"), {"__name__": "__main__"})


def test_six_lines_load_a_checkpoint_and_save_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len([line for line in BLOCKS[1].splitlines() if line.strip()]) <= 6
    run(BLOCKS[0])
    run(BLOCKS[1])
    with Image.open(tmp_path / "fox.png") as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (256, 192), "RGB")
        assert len(picture.getcolors(2**16) or []) > 100


def test_the_other_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 4
    for block in BLOCKS[2:]:
        run(block)
