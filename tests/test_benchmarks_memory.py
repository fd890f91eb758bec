"""The benchmark of memory runs in tiny sizes, every mode in its own process; its figures are for a quiet machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "memory.py"
MODES = {"fp32", "bf16", "int8", "fp8", "offload", "disk", "disk-int8"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_the_memory_benchmark_ends_with_figures_of_every_mode() -> None:
    tiny = ["--features=64", "--layers=2", "--side=2", "--repeats=1", "--threads=1", "--device=cpu"]
    done = subprocess.run([sys.executable, FILE, "--json", *tiny], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == 2 + len(MODES)
    found = json.loads(lines[-1])
    assert found.keys() == MODES
    for mode, one in found.items():
        assert one["seconds"] > 0, mode
        assert one["max"] >= one["mean"] >= 0, mode
    # blocks that visit compute what the whole model computes, bit for bit
    assert found["bf16"]["max"] == found["offload"]["max"] == found["disk"]["max"] == 0
    assert found["disk-int8"]["max"] == found["int8"]["max"]
    assert found["int8"]["mean"] > 0
    assert found["fp8"]["mean"] > 0
    assert found["fp32"]["mean"] > 0
