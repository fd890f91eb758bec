"""The krablet's benchmark runs, in tiny sizes; what it says about speed is for a quiet machine."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
PEERS = {"queues": ("pgqueuer", "procrastinate"), "maps": ("dask",)}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/krablet.py, imported anew; its parts lie beside it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_krablet", FOLDER / "krablet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("part", "key"), [("churn", "churn_growth"), ("upserts", "funnel_vs_autocommit")])
def test_a_part_ends_with_its_figures(
    module: Any, part: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["krablet.py", "--json", "--quick", "--only", part])
    module.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures[key] > 0
    assert all(math.isfinite(value) for value in figures.values())


@pytest.mark.slow
@pytest.mark.parametrize(("part", "key"), [("queues", "jobs_vs_pgqueuer"), ("maps", "pluck_overhead_us")])
def test_a_part_with_peers_ends_with_its_figures(
    module: Any, part: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for peer in PEERS[part]:
        pytest.importorskip(peer)
    assert module.measured([part], quick=True)[key] != 0
