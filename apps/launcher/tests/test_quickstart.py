"""The whole quickstart on a made-up corpus: real PostgreSQL, real text encoder, every stage, killed and continued."""

import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import typer
from krea_launcher.compose import build
from krea_launcher.presets import smoke
from krea_launcher.quickstart import Quickstart
from krea_launcher.run import open_run, write
from krea_model import bundle
from rich.console import Console
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

DRIVER = """
import sys
from pathlib import Path
from test_quickstart import quickstart
quickstart(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def quickstart(folder: Path, corpus: Path) -> Quickstart:
    """A finished smoke run whose corpus needs no network."""
    torch.set_num_threads(1)
    preset = smoke()
    with open_run(folder, {"preset": asdict(preset), "seed": 0}) as run:
        write(
            run.path("facts", "fetch.json"),
            json.dumps({"folder": str(corpus), "pictures": {}, "seconds": 1.0, "peak_bytes": 1}),
        )
        with build(run, preset, 0, Console(quiet=True), None) as work:
            work()
            return work


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    quickstart(folder, corpus)
    return folder


def test_the_report_is_whole_and_needs_nothing_else(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for heading in ("What it draws", "Is it what was asked for?", "The funnel", "Training", "What it cost", "Go on"):
        assert f"<h2>{heading}" in page
    assert page.count("data:image/png;base64,") >= 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<polyline") >= 3


def test_every_stage_left_its_facts(finished: Path) -> None:
    judged = json.loads((finished / "facts" / "judge.json").read_text())
    curated = json.loads((finished / "facts" / "curate.json").read_text())
    assert {one["task"] for one in curated["funnel"]} >= {"decode", "hash", "dedup", "caption"}
    assert curated["rows"] == 40
    assert 0 < curated["kept"] <= 40
    assert all(1 <= one["rank"] <= judged["concepts"] for one in judged["samples"])
    assert [*judged["stages"]] == ["sft", "preference"]
    assert judged["stages"]["preference"]["trained"]["count"] >= 1


def test_the_model_folder_draws(finished: Path) -> None:
    loaded = bundle.load(finished / "model")
    image = bundle.draw(loaded, ["red apple, flat style"], [0], steps=2)
    assert image.shape == (1, 3, 64, 64)
    assert loaded.manifest["about"]["recipe"] == "quickstart, preset smoke, seed 0"


def test_a_second_start_does_nothing_again(finished: Path, corpus: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "facts").iterdir() if p.name != "fetch.json"}
    quickstart(finished, corpus)
    assert before == {p: p.stat().st_mtime_ns for p in (finished / "facts").iterdir() if p.name != "fetch.json"}


def test_killed_again_and_again_it_ends_with_the_same_model(finished: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a killed run"
    argv = [sys.executable, "-c", DRIVER, str(folder), str(corpus)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    for sign in (
        "facts/curate.json",
        "autoencoder/checkpoints",
        "pretrain-64/weights.safetensors",
        "preference/pairs.jsonl",
        "preference/average.safetensors",
    ):
        with subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL) as child:
            while child.poll() is None and not (folder / sign).exists():
                time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
    subprocess.run(argv, env=env, check=True, stderr=subprocess.DEVNULL)
    one, two = (load_file(place / "model" / "model.safetensors") for place in (finished, folder))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert what_was_found(finished) == what_was_found(folder)


def what_was_found(folder: Path) -> dict[str, object]:
    """All facts of a run except times, sizes and places."""
    changing = {"seconds", "peak_bytes", "memory_bytes", "step_s", "images_per_s", "folder"}
    facts = {path.name: json.loads(path.read_text()) for path in sorted((folder / "facts").glob("*.json"))}
    return {name: {k: v for k, v in found.items() if k not in changing} for name, found in facts.items()}


def test_the_printed_commands_are_understood(finished: Path) -> None:
    from krea_curator.cli import app as curate
    from krea_launcher.cli import app as launch

    page = html.unescape((finished / "report.html").read_text())
    commands = [shlex.split(one) for one in re.findall(r"<code>(.*?)</code>", page)]
    apps = {"krea-launch": launch, "krea-curate": curate}
    for uv, run, name, *arguments in commands:
        assert (uv, run) == ("uv", "run")
        if name in apps:
            command = typer.main.get_command(apps[name]).commands[arguments[0]]  # type: ignore[attr-defined]
            assert command.make_context(arguments[0], arguments[1:]).params  # raises for an unknown flag or value
        for flag in ("--out", "--home", "--model"):
            if flag in arguments:
                assert Path(arguments[arguments.index(flag) + 1]).exists() == (flag != "--out")


def test_a_cache_removed_before_the_curation_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, asked = tmp_path / "new cache", []
    monkeypatch.setattr("krea_launcher.corpus.fetched", lambda tick, cache: {"folder": str(new)})
    monkeypatch.setattr("krea_launcher.corpus.curated", lambda corpus, *rest: asked.append(corpus) or {})
    with open_run(tmp_path / "run", {}) as run:
        write(run.path("facts", "fetch.json"), json.dumps({"folder": str(tmp_path / "gone"), "seconds": 1.0}))
        with build(run, smoke(), 0, Console(quiet=True), None) as work:
            work.curate()
    assert asked == [new]


def test_a_removed_cache_hinders_no_later_stage(finished: Path) -> None:
    fact = finished / "facts" / "fetch.json"
    before = fact.read_text()
    fact.write_text(json.dumps({"folder": "/nowhere", "pictures": {}, "seconds": 1.0, "peak_bytes": 1}))
    (finished / "report.html").unlink()
    with open_run(finished, {"preset": asdict(smoke()), "seed": 0}) as run:
        with build(run, smoke(), 0, Console(quiet=True), None) as work:
            assert work().exists()
    fact.write_text(before)
