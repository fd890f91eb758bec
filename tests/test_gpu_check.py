"""The GPU check walks through all its code on the CPU, and a wrong result would fail it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from krea_model import kernels

from tools import gpu_check
from tools.gpu import check
from tools.gpu.attention import exact
from tools.gpu.clock import error, rated_peak
from tools.gpu.operations import operations, outcome
from tools.gpu.rows import Row, report
from tools.gpu.sizes import dry, full
from tools.gpu.step import best, calls, pair, ratio_rows

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
    names = {row["name"] for row in written["rows"]}
    assert "kernel norm_rotate, chosen backward: share of a copy's rate" in names
    assert "kernel swiglu, plain compiled forward: time" in names
    assert "kernel rms_norm_modulate, liger" in names
    assert "equal texts, bfloat16, step: times as fast as diffusers compiled" in names
    assert "ragged texts, bfloat16, krea_model step: share of the rated peak (MFU)" in names
    assert not any(row["failed"] for row in checks.values())
    assert (tmp_path / "gpu/gpu.md").read_text() in done.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert check.main(["--out", str(tmp_path)]) == 2
    assert "use --dry-run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_value_beyond_its_bound_or_no_number_fails() -> None:
    assert not Row(name="x", value=1e-5, limit=1e-4).failed
    assert Row(name="x", value=1e-3, limit=1e-4).failed
    assert Row(name="x", value=float("nan"), limit=1e-4).failed
    assert not Row(name="x", value=5.0, unit="ms").failed
    assert not Row(name="x", value=0.9, least=0.8).failed
    assert Row(name="x", value=0.7, least=0.8).failed
    assert Row(name="x", value=float("nan"), least=0.8).failed
    assert not Row(name="x", value=None, least=0.8).failed
    assert "| x | 0.7 | >= 0.8 | FAILED |" in report({}, [Row(name="x", value=0.7, least=0.8)])


def test_every_kernel_is_looked_at_and_every_bar_set() -> None:
    assert sorted(operations(dry(), (3, 2), torch.float32)) == sorted(kernels.__all__)
    assert full().seconds < 600
    assert any(case.compiled for case in full().cases)
    steps = {"c, krea_model": 3.0, "c, krea_model compiled": 2.0, "c, diffusers": 4.0, "c, diffusers compiled": 2.5}
    assert best(steps, "c, krea_model") == 2.0
    eager, compiled = ratio_rows("c", steps, full())
    assert (eager.value, eager.failed) == (2.0, False)
    assert (compiled.value, compiled.least, compiled.failed) == (1.25, 1.3, True)


def test_a_wrong_kernel_or_model_would_show() -> None:
    given = operations(dry(), (3, 2), torch.float32)["swiglu"]
    right, slopes = outcome(kernels.swiglu, given.tensors, given.rest)
    wrong, wrong_slopes = outcome(lambda gate, up: kernels.swiglu(up, gate), given.tensors, given.rest)
    assert error(right, right) == 0.0
    assert error(wrong, right) > 0.1
    assert error(wrong_slopes[0], slopes[0]) > 0.1
    models = pair(dry(), torch.float32)
    mine, other = calls(dry(), dry().cases[1], torch.float32, models)
    with torch.no_grad():
        models[0].get_parameter("blocks.0.mod.lin").add_(0.1)
        assert error(mine(), other()) > 1e-3


def test_when_time_is_up_the_rest_is_skipped_and_said() -> None:
    late = list(check.rows(replace(dry(), seconds=0.0)))
    assert [row.name for row in late] == [part.__name__ for part in check.PARTS]
    assert all(row.note == "skipped: out of time" and row.value is None for row in late)


def test_the_first_name_that_fits_gives_the_peak() -> None:
    assert rated_peak("NVIDIA H100 80GB HBM3") == 989.4e12
    assert rated_peak("NVIDIA H100 PCIe") == 756e12
    assert rated_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert rated_peak("an unknown card") is None


def test_the_reference_is_attention() -> None:
    """Against torch's own on one sequence, and blind to the other sequences."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, 4, 8, generator=generator)
    k, v = (torch.randn(5, 2, 8, generator=generator) for _ in range(2))
    one, two, three = (x[:3].transpose(0, 1) for x in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)))
    wanted = torch.nn.functional.scaled_dot_product_attention(one, two, three)
    torch.testing.assert_close(exact(q, k, v, (3, 2))[:3].float(), wanted.transpose(0, 1))
