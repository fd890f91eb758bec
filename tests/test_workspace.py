"""The rules of the workspace hold here, and each is noticed when it is broken."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools import workspace as rules


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_correct_workspace_breaks_no_rule(workspace: Path) -> None:
    assert rules.breaches(workspace) == []
    assert rules.warnings(workspace) == []


def break_floor(root: Path) -> None:
    edit(root / "high/pyproject.toml", "low>=0.3,<0.4", "low<0.4")


def break_range(root: Path) -> None:
    edit(root / "high/pyproject.toml", "low>=0.3,<0.4", "low>=0.1,<0.3")


def break_group(root: Path) -> None:
    edit(root / "low/pyproject.toml", '"pytest>=8"', '"pytest>=8", "high>=0.3,<0.4"')


def break_python(root: Path) -> None:
    edit(root / "low/pyproject.toml", ">=3.11", ">=3.12")


def break_root(root: Path) -> None:
    edit(root / "pyproject.toml", "[tool.uv.sources]", '[project]\nname = "root"\n[tool.uv.sources]')


def break_sources(root: Path) -> None:
    edit(root / "pyproject.toml", "low = { workspace = true }", "")


def break_contracts(root: Path) -> None:
    edit(root / "pyproject.toml", 'root_packages = ["low", "high"]', 'root_packages = ["low"]')


def break_readme(root: Path) -> None:
    (root / "low/README.md").unlink()


def break_typed(root: Path) -> None:
    (root / "low/src/low/py.typed").unlink()


def break_name(root: Path) -> None:
    (root / "low/src/low/utils.py").write_text("__all__: list[str] = []\n")


def break_all(root: Path) -> None:
    (root / "low/src/low/noun.py").write_text("x = 1\n")


def break_file(root: Path) -> None:
    (root / "low/src/low/long.py").write_text("__all__: list[str] = []\n" + "x = 1\n" * 600)


def break_function(root: Path) -> None:
    (root / "low/src/low/long.py").write_text("__all__ = ['f']\n\n\ndef f():\n" + "    x = 1\n" * 60)


def break_path(root: Path) -> None:
    (root / "low/README.md").write_text("see /home/someone/notes\n")


def break_registry(root: Path) -> None:
    (root / "notes.toml").write_text('index-url = "https://mirror.invalid/simple"\n')


def break_tests(root: Path) -> None:
    (root / "low/tests").mkdir()
    (root / "low/tests/__init__.py").write_text("")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_floor, "high: low<0.4 needs a floor and a ceiling"),
        (break_range, "high: low<0.3,>=0.1 does not admit low 0.3.1"),
        (break_group, "low: a dependency group names high"),
        (break_python, "requires-python differs between members: >=3.11, >=3.12"),
        (break_root, "the root has a [project] table"),
        (break_sources, "tool.uv.sources lacks low"),
        (break_contracts, "tool.importlinter.root_packages lacks high"),
        (break_readme, "low: README.md is missing"),
        (break_typed, "low: low/py.typed is missing"),
        (break_name, "utils says nothing"),
        (break_all, "low/src/low/noun.py: __all__ is missing"),
        (break_file, "low/src/low/long.py: 601 lines; the limit is 600"),
        (break_function, "low/src/low/long.py:4: f has 61 lines; the limit is 60"),
        (break_path, "low/README.md:1: /home/s belongs to one machine"),
        (break_registry, "notes.toml:1: index-url = belongs to one machine"),
        (break_tests, "low: tests hold an __init__.py"),
    ],
)
def test_each_broken_rule_is_one_sentence(workspace: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(workspace)
    found = rules.breaches(workspace)
    assert len(found) == 1
    assert sentence in found[0]


def test_sizes_above_the_aim_are_warnings(workspace: Path) -> None:
    (workspace / "low/src/low/longish.py").write_text(
        "__all__ = ['f']\n\n\ndef f(a, b, c, d, e, g, h, i, j):\n" + "    x = 1\n" * 45 + "\n" * 400
    )
    assert rules.breaches(workspace) == []
    assert [line.split(": ", 1)[1] for line in rules.warnings(workspace)] == [
        "449 lines; aim under 400",
        "f has 46 lines; aim under 40",
        "f has 9 parameters; aim at 8",
    ]


def test_lock_and_relative_paths_may_stay(workspace: Path) -> None:
    (workspace / "uv.lock").write_text('registry = "https://pypi.org/simple"\n')
    (workspace / "low/README.md").write_text("see docs/home/page and https://example.org/work/x\n")
    assert rules.breaches(workspace) == []
