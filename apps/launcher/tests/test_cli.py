"""The command line: help with examples, one red line for a mistake, and a list of flags that changes on purpose."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from krea_launcher.cli import app
from typer.testing import CliRunner

runner = CliRunner()


def test_flags_are_few_and_known() -> None:
    command = typer.main.get_command(app)
    quickstart = command.commands["quickstart"]  # type: ignore[attr-defined]
    assert sorted(name for p in quickstart.params for name in p.opts) == ["--cache", "--out", "--preset", "--seed"]


def test_help_has_examples() -> None:
    said = runner.invoke(app, ["quickstart", "--help"]).output
    assert "krea-launch quickstart --preset small" in said


def test_an_unknown_preset_is_one_sentence(tmp_path: Path) -> None:
    done = runner.invoke(app, ["quickstart", "--preset", "huge", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.strip() == "no preset 'huge'; choose from nano, small, smoke"


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = runner.invoke(app, ["quickstart", "--preset", "smoke", "--out", str(tmp_path / "file" / "run")])
    assert done.exit_code == 2
    assert "cannot write to" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_an_interrupt_during_imports_is_quiet() -> None:
    program = """
import os, signal
from krea_curator.interrupt import at_once
with at_once():
    os.kill(os.getpid(), signal.SIGINT)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
