"""The benchmark of curation runs, in tiny sizes; what it says about speed is for a quiet machine."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/data.py, imported anew; its parts lie beside it."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # which it would set for good
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_data", FOLDER / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("part", "key"), [("hashes", "hash_vs_imagehash"), ("radius", "radius_recall")])
def test_a_part_ends_with_its_figures(
    module: Any, part: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["data.py", "--json", "--quick", "--only", part])
    module.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures[key] > 0
    assert figures.get("radius_recall", 1.0) == 1.0
    assert all(math.isfinite(value) for value in figures.values())


def test_parts_that_are_not_there_are_left_out(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    assert module.measured(quick=True) == {}
    assert capsys.readouterr().out.splitlines() == [f"-- {name} is not here" for name in module.PARTS]


def test_the_main_figures_come_first(module: Any) -> None:
    found = {"a": 1.0, "radius_vs_faiss": 2.0, "hash_vs_imagehash": 3.0}
    assert list(module.ordered(found)) == ["hash_vs_imagehash", "radius_vs_faiss", "a"]
