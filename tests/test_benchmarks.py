"""The benchmarks run, in tiny sizes, and compare equal outputs; what they say about speed is for a quiet machine."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from krea_model.configs import tiny

FILE = Path(__file__).parents[1] / "benchmarks" / "model.py"
KEYS = {"mixed_prompts_vs_diffusers", "full_prompts_vs_diffusers", "sampling_vs_diffusers", "matmul_fraction"}


@pytest.fixture
def module() -> Any:
    """benchmarks/model.py, imported anew."""
    spec = importlib.util.spec_from_file_location("benchmark_model", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_model_benchmark_ends_with_its_four_figures(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "CONFIG", replace(tiny(), channels=16))
    monkeypatch.setattr(module, "WINDOW", 24)
    monkeypatch.setattr(module, "MIXED", (3, 8, 20))
    monkeypatch.setattr(module, "PRODUCT", 64)
    monkeypatch.setattr(sys, "argv", ["model.py", "--json", "--repeats", "1"])
    module.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures.keys() == KEYS
    assert min(figures.values()) > 0


def test_a_benchmark_of_unequal_models_is_refused(module: Any) -> None:
    ours, theirs = module.pair(replace(tiny(), channels=16))
    ours.last.linear.bias.data += 1
    with pytest.raises(RuntimeError, match=r"differ by .*would mean nothing"):
        module.steps(ours, theirs, (3, 8))
