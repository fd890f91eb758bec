"""Every Python example of the READMEs and guides runs as it stands, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path
    for pattern in ("*.md", "packages/*/README.md", "apps/*/README.md", "docs/*.md", "docs/guides/*.md")
    for path in sorted(ROOT.glob(pattern))
]
SKIP = re.compile(r"<!-- not executed: \S.* -->")


def example(page: str) -> str:
    """The Python blocks of a page as one program; the other lines are left blank, so line numbers stay true."""
    code, inside, marked = [], False, False
    for line in page.splitlines():
        fence = line.startswith("```")
        keep = inside and not fence
        code.append(line if keep else "")
        if fence:
            inside = not inside and line == "```python" and not marked
        if line.strip():
            marked = bool(SKIP.fullmatch(line))
    return "\n".join(code) + "\n"


def test_example_keeps_line_numbers_and_leaves_out_what_is_marked() -> None:
    page = "text\n```python\na = 1\n```\n<!-- not executed: needs a GPU -->\n\n```python\nb\n```\n```bash\nc\n```\n"
    assert example(page).split("\n") == ["", "", "a = 1", *[""] * 10]


def test_a_mark_without_a_reason_is_no_mark() -> None:
    assert "b" in example("<!-- not executed: -->\n```python\nb\n```\n")


@pytest.mark.parametrize("path", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_examples_run(path: Path, tmp_path: Path) -> None:
    code = example(path.read_text())
    if not code.strip():
        pytest.skip("no Python example")
    script = f"exec(compile({code!r}, {str(path)!r}, 'exec'))"
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        (sys.executable, "-c", script), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
