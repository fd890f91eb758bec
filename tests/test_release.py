"""Order, cascade and the clean checkout of a release."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import release
from tools.workspace import members


def test_order_puts_dependencies_first_in_this_repository() -> None:
    siblings = release.graph(members())
    ordered = release.order(siblings, siblings)
    assert set(ordered) == set(siblings)
    for name, others in siblings.items():
        assert all(ordered.index(other) < ordered.index(name) for other in others)


def test_order_refuses_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="no member is called krea-nothing; the members are a, b"):
        release.order(["krea-nothing"], {"a": set(), "b": {"a"}})


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        release.order(["a"], {"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize(
    ("version", "part", "expected"),
    [("0.3.1", "patch", "0.3.2"), ("0.3.1", "minor", "0.4.0"), ("0.3.1", "major", "1.0.0"), ("2.1", "patch", "2.1.1")],
)
def test_bumped(version: str, part: str, expected: str) -> None:
    assert release.bumped(version, part) == expected


def test_bumped_refuses_an_unknown_part() -> None:
    with pytest.raises(ValueError, match="use one of major, minor, patch"):
        release.bumped("0.1.0", "tiny")


def test_a_breaking_release_drags_its_dependants_along(workspace: Path) -> None:
    everyone = members(workspace)
    (workspace / "low/changelog.d/1.breaking.md").write_text("A name went away.\n")
    assert release.affected("low", "0.3.2", everyone) == []
    assert release.plan("low", "patch", everyone) == ["low 0.3.1 -> 0.3.2"]
    assert release.plan("low", "minor", everyone) == [
        "low 0.3.1 -> 0.4.0",
        "high 0.3.1 -> 0.3.2 (its range stops short of low 0.4.0: raise it)",
        "  high: changelog.d holds no fragment; say there what changed",
    ]


def test_a_stray_file_stops_the_build(workspace: Path) -> None:
    (workspace / ".gitignore").write_text("*.log\n")
    (workspace / "low/src/low/debug.log").write_text("shipped by the build backend although git ignores it\n")
    with pytest.raises(ValueError, match=r"low has changes or stray files .*debug\.log"):
        release.build(["high", "low"], members(workspace), workspace / "dist")


def test_build_makes_wheels_in_order(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "ROOT", workspace)
    assert release.build(["high", "low"], members(workspace), workspace / "dist") == ["low", "high"]
    with zipfile.ZipFile(workspace / "dist/high-0.3.1-py3-none-any.whl") as wheel:
        metadata = wheel.read("high-0.3.1.dist-info/METADATA").decode()
    assert "Requires-Dist: low>=0.3,<0.4" in metadata


def test_the_command_line_says_what_is_wrong() -> None:
    done = subprocess.run(
        (sys.executable, "-m", "tools.release", "plan", "krea-nothing"),
        cwd=release.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no member is called krea-nothing" in done.stderr
