import functools
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from krea_model.configs import tiny
from krea_model.mmdit import MMDiT
from krea_train import AdamW, Average, FlowMatching, Muon, Optimizer, Settings, State, checkpoint, fit
from krea_train.average import power
from krea_train.interfaces import Batch
from krea_train.testing import Recorder, Squares, WordStates, pixels
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

PROGRAM = Path(__file__).parent / "programs" / "squares.py"


def model() -> MMDiT:
    torch.manual_seed(0)
    return MMDiT(replace(tiny(), channels=3))


def flow() -> FlowMatching:
    return FlowMatching(latents=pixels, text=WordStates(), seed=1)


def files(folder: Path, step: int) -> dict[str, str]:
    manifest = json.loads((folder / f"step-{step:06d}" / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def start(folder: Path, steps: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, PROGRAM, folder, str(steps)], stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(step):
            return
    raise AssertionError(f"step {step} was never reached")


@pytest.mark.skipif(sys.platform == "win32", reason="uses SIGKILL and SIGTERM")
def test_killed_and_resumed_equals_unbroken_bit_for_bit(tmp_path: Path):
    unbroken = start(tmp_path / "unbroken", 12)
    assert "ended None at 12" in unbroken.communicate()[0]

    killed = start(tmp_path / "broken", 12)
    wait_for(killed, 4)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    reached = checkpoint.newest(tmp_path / "broken")
    assert reached is not None
    assert 3 <= int(reached.name[5:]) < 12

    stopped = start(tmp_path / "broken", 12)
    wait_for(stopped, 7)
    stopped.send_signal(signal.SIGTERM)
    out = stopped.communicate()[0]
    assert stopped.returncode == 0
    assert "ended SIGTERM at" in out

    assert "ended None at 12" in start(tmp_path / "broken", 12).communicate()[0]
    assert files(tmp_path / "broken", 12) == files(tmp_path / "unbroken", 12)
    assert set(files(tmp_path / "broken", 12)) == {
        "model.safetensors",
        "optimizer.safetensors",
        "average.safetensors",
        "state.json",
    }


def test_a_tiny_model_learns_the_squares():
    net, log = model(), Recorder()
    settings = Settings(steps=40, log_every=10)
    average = Average(net, power(6.94))
    state = fit(net, Squares(count=16), flow(), Optimizer(net, AdamW(lr=3e-3)), settings, average=average, log=log)
    assert [step for step, _ in log.rows] == [10, 20, 30, 40]
    assert (state.step, state.images, state.ended) == (40, 640, None)
    assert log.curve("loss")[-1] < 0.4 * log.curve("loss")[0]
    assert {"loss_t0.00", "grad_norm", "skipped", "lr", "images_per_s", "memory_bytes"} <= log.rows[0][1].keys()


def test_torchs_own_optimizer_resumes_too(tmp_path: Path):
    def run(folder: Path, steps: int) -> State:
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        return fit(net, Squares(count=4, side_px=8), flow(), optimizer, Settings(steps=steps, folder=folder))

    straight = run(tmp_path / "a", 4)
    run(tmp_path / "b", 2)
    resumed = run(tmp_path / "b", 4)
    named = dict(straight.model.named_parameters())
    assert all(torch.equal(p, named[name]) for name, p in resumed.model.named_parameters())
    assert run(tmp_path / "b", 3).step == 4, "a run that is further than asked is left alone"


class Spoiled:
    """The sum of the weights; not finite at chosen steps."""

    def __init__(self, bad: Sequence[int]) -> None:
        self.bad = bad

    def __call__(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss = torch.stack([p.sum() for p in net.parameters()]).sum() * (float("nan") if step in self.bad else 1.0)
        return loss, {"loss": loss.detach()}


@pytest.mark.parametrize("kind", ["ours", "fused", "plain"])
def test_an_update_that_is_not_finite_is_skipped(kind: str):
    def run(bad: Sequence[int], steps: int) -> tuple[nn.Linear, Recorder]:
        torch.manual_seed(0)
        net, log = nn.Linear(3, 2), Recorder()
        optimizer = {
            "ours": lambda: Optimizer(net, AdamW(lr=0.1)),
            "fused": lambda: torch.optim.AdamW(net.parameters(), lr=0.1, fused=True),
            "plain": lambda: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        }[kind]()
        fit(net, Squares(count=1), Spoiled(bad), optimizer, Settings(steps=steps, log_every=1), log=log)
        return net, log

    spoiled, log = run((1, 2), 5)
    clean, _ = run((), 3)
    assert log.curve("skipped") == [0, 1, 1, 0, 0]
    assert torch.equal(spoiled.weight, clean.weight)


def test_a_run_that_is_never_finite_again_ends():
    net = nn.Linear(3, 2)
    before = net.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="last 50 steps, up to 50"):
        fit(net, Squares(count=1), Spoiled(range(99)), Optimizer(net, AdamW(lr=0.1)), Settings(steps=99))
    assert torch.equal(net.weight, before)


class Syncs(TorchDispatchMode):
    """Counts what would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func), kwargs or {}
        unsized = "repeat_interleave" in name and kwargs.get("output_size") is None
        if unsized or any(wait in name for wait in ("_local_scalar_dense", "nonzero", "unique")):
            self.found.append(name)
        return func(*args, **kwargs)


@pytest.mark.parametrize("muon", [None, Muon(lr=1e-3)], ids=["adamw", "muon"])
def test_nothing_waits_for_the_device_between_log_steps(muon: Muon | None):
    net, syncs = model(), Syncs()
    marks: list[int] = []
    net.register_forward_pre_hook(lambda *_: marks.append(len(syncs.found)))
    optimizer = Optimizer(net, AdamW(lr=1e-3), muon)
    average = Average(net, power(6.94))
    with syncs:
        fit(net, Squares(count=2, side_px=8), flow(), optimizer, Settings(steps=9, log_every=4), average=average)
    assert len(marks) == 9
    steps = [after - before for before, after in pairwise(marks)]
    assert [n for i, n in enumerate(steps, 1) if i % 4] == [0] * 6, set(syncs.found)
    assert steps[3] > 0, "the counter does not see the log step"


def test_settings_are_checked():
    with pytest.raises(ValueError, match="keep 1"):
        Settings(steps=1, keep=1)


def test_rates_follow_the_schedule_and_come_back():
    net, log = nn.Linear(3, 2), Recorder()
    optimizer = Optimizer(net, AdamW(lr=0.5))
    schedule = functools.partial(lambda scale, step: scale / (step + 1), 1.0)
    fit(net, Squares(count=1), Spoiled(()), optimizer, Settings(steps=3, log_every=1, schedule=schedule), log=log)
    assert log.curve("lr") == [0.5, 0.25, pytest.approx(0.5 / 3)]
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_a_stopped_run_is_saved_and_goes_on(tmp_path: Path):
    def run(stop: int) -> State:
        net = nn.Linear(3, 2)
        settings = Settings(steps=9, folder=tmp_path)
        return fit(
            net, Squares(count=1), Spoiled(()), Optimizer(net, AdamW(lr=0.1)), settings, stop=lambda n: n == stop
        )

    state = run(4)
    assert (state.step, state.ended) == (4, "stop")
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [4]
    assert (run(0).step, run(0).ended) == (9, None)


def test_a_failure_saves_nothing_and_frees_the_folder(tmp_path: Path):
    class Finite(Squares):
        def __iter__(self):
            stream = super().__iter__()
            return iter([next(stream), next(stream)])

    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="the batches ended after 2 steps"):
        fit(net, Finite(count=1), Spoiled(()), Optimizer(net, AdamW(lr=0.1)), Settings(steps=3, folder=tmp_path))
    assert checkpoint.steps(tmp_path) == []
    with checkpoint.claim(tmp_path):
        pass


def test_a_checkpoint_of_another_model_is_refused_and_left_alone(tmp_path: Path):
    def run(features: int) -> State:
        net = nn.Linear(features, 2)
        optimizer = Optimizer(net, AdamW(lr=0.1))
        return fit(net, Squares(count=1), Spoiled(()), optimizer, Settings(steps=2, folder=tmp_path))

    run(3)
    with pytest.raises(ValueError, match="of another model: 'weight' is"):
        run(4)
    assert run(3).step == 2


def test_a_run_falls_back_to_the_checkpoint_before_a_damaged_one(tmp_path: Path):
    def run(steps: int) -> State:
        net = nn.Linear(3, 2)
        settings = Settings(steps=steps, folder=tmp_path)
        return fit(net, Squares(count=1), Spoiled(()), Optimizer(net, AdamW(lr=0.1)), settings)

    run(2)
    run(4)
    good = hashlib.sha256((tmp_path / "step-000004" / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "step-000004" / "model.safetensors").write_bytes(b"")
    assert run(4).step == 4
    assert files(tmp_path, 4)["model.safetensors"] == good
