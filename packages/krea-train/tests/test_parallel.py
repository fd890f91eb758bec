import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from krea_train import checkpoint, parallel
from torch import nn

PROGRAM = Path(__file__).parent / "programs" / "sharded.py"


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sharded", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def two_ranks(folder: Path, steps: int) -> None:
    folder.mkdir(exist_ok=True)
    meeting = folder / f"meeting-{steps}"
    ranks = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(rank), "2", meeting, folder, str(steps)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)


def test_two_processes_equal_one_and_hand_over_to_one(tmp_path: Path):
    two_ranks(tmp_path / "two", 6)
    loss, norm, step = json.loads((tmp_path / "two" / "curve.json").read_text())
    state, log = program().train(tmp_path / "one", 6, sharded=False)
    assert step == state.step == 6
    assert min(norm) > 0.1, "the clip was never at work"
    assert loss == pytest.approx(log.curve("loss"), abs=1e-6)
    assert norm == pytest.approx(log.curve("grad_norm"), rel=1e-6, abs=1e-6)

    ours, theirs = (checkpoint.load(tmp_path / name / "step-000006") for name in ("one", "two"))
    assert ours["model"].keys() == theirs["model"].keys()
    assert ours["optimizer"]["mean"].keys() == theirs["optimizer"]["mean"].keys()
    for part in (("model",), ("average",), ("optimizer", "mean"), ("optimizer", "square")):
        one, two = ours, theirs
        for name in part:
            one, two = one[name], two[name]
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)

    resumed, _ = program().train(tmp_path / "two", 8, sharded=False)
    straight, _ = program().train(tmp_path / "one", 8, sharded=False)
    for name, p in resumed.model.named_parameters():
        torch.testing.assert_close(p, dict(straight.model.named_parameters())[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("limit", [0.5, 1e9, None])
def test_the_clip_is_torchs_on_plain_tensors(limit: float | None):
    grads = [torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    ours, theirs = ([nn.Parameter(torch.zeros(3, 4)) for _ in range(3)] for _ in range(2))
    for params in (ours, theirs):
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
    norm = parallel.clip_grad_norm(ours, limit)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs, limit if limit is not None else 1e30))
    assert all(
        torch.equal(a.grad, b.grad)
        for a, b in zip(ours, theirs, strict=True)
        if a.grad is not None and b.grad is not None
    )


def test_a_clip_without_gradients_says_so():
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        parallel.clip_grad_norm([nn.Parameter(torch.zeros(1))], 1.0)


def test_one_process_needs_no_group():
    x = torch.ones(2)
    assert (parallel.rank(), parallel.world(), parallel.agree(3)) == (0, 1, 3)
    assert parallel.full(x) is x
    assert parallel.local(x) is x
    assert parallel.over_ranks(x) is x
    with pytest.raises(ValueError, match="does not fit"):
        parallel.place(x, torch.ones(3))
    with pytest.raises(ValueError, match="do not divide"):
        parallel.mesh(replicas=2)
