"""A small workspace of two members, for the tests of the tools."""

import subprocess
from pathlib import Path

import pytest

ROOT_TOML = """
[tool.uv.workspace]
members = ["low", "high"]
[tool.uv.sources]
low = { workspace = true }
high = { workspace = true }
[tool.importlinter]
root_packages = ["low", "high"]
"""

MEMBER_TOML = """
[project]
name = "NAME"
version = "0.3.1"
requires-python = ">=3.11"
dependencies = [DEPENDENCIES]
[dependency-groups]
test = ["pytest>=8"]
[build-system]
requires = ["uv_build>=0.9,<0.14"]
build-backend = "uv_build"
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace that breaks no rule: `high` depends on `low`, both at 0.3.1, everything committed."""
    write(tmp_path / "pyproject.toml", ROOT_TOML)
    for name, needs in (("low", ""), ("high", '"low>=0.3,<0.4"')):
        write(tmp_path / name / "pyproject.toml", MEMBER_TOML.replace("NAME", name).replace("DEPENDENCIES", needs))
        for empty in ("README.md", "CHANGELOG.md", "changelog.d/.gitkeep", f"src/{name}/py.typed"):
            write(tmp_path / name / empty, "")
        write(tmp_path / name / "src" / name / "__init__.py", '"""One sentence."""\n\n__all__: list[str] = []\n')
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "first")):
        subprocess.run((*git, *command), cwd=tmp_path, check=True)
    return tmp_path
