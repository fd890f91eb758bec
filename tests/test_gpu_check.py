"""The GPU check walks through all its code on the CPU, and a wrong result would fail it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from krea_model.kernels import reference

from tools import gpu_check

SCRIPT = Path(gpu_check.__file__)


def test_the_dry_run_writes_both_files_and_passes(tmp_path: Path) -> None:
    done = subprocess.run(
        (sys.executable, str(SCRIPT), "--dry-run", "--out", str(tmp_path / "gpu")), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "gpu/gpu.json").read_text())
    checks = {row["name"]: row for row in written["rows"] if row["limit"] is not None}
    assert "attention math float32: error" in checks
    assert "kernel swiglu bfloat16: error of gradients" in checks
    assert "ragged texts, float32: difference" in checks
    assert not any(row["failed"] for row in checks.values())
    assert (tmp_path / "gpu/gpu.md").read_text() in done.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    assert "use --dry-run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_value_above_its_limit_or_no_number_fails() -> None:
    assert not gpu_check.Row(name="x", value=1e-5, unit="", limit=1e-4).failed
    assert gpu_check.Row(name="x", value=1e-3, unit="", limit=1e-4).failed
    assert gpu_check.Row(name="x", value=float("nan"), unit="", limit=1e-4).failed
    assert not gpu_check.Row(name="x", value=5.0, unit="ms").failed


def test_every_kernel_is_looked_at() -> None:
    assert sorted(gpu_check.operands(gpu_check.dry())) == sorted(reference.__all__)


def test_the_reference_is_attention() -> None:
    """Against torch's own on one sequence, and blind to the other sequences."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, 4, 8, generator=generator)
    k, v = (torch.randn(5, 2, 8, generator=generator) for _ in range(2))
    one, two, three = (x[:3].transpose(0, 1) for x in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)))
    wanted = torch.nn.functional.scaled_dot_product_attention(one, two, three)
    torch.testing.assert_close(gpu_check.exact(q, k, v, (3, 2))[:3].float(), wanted.transpose(0, 1))
