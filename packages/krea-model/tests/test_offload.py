import gc
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from krea_model import lora, offload, weights
from krea_model.configs import Config, tiny
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.quantise import quantise
from krea_model.testing import FakeTextEncoder, fill, tiny_model
from torch import Tensor, nn

COND = FakeTextEncoder()(["a red cat", "sky"])
GRIDS = [(2, 3), (1, 4)]
X = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.3, 0.8])
DEEP = Config(
    features=64, layers=5, heads=4, kvheads=2, txtdim=32, txtlayers=3, txtheads=2, txtkvheads=2, channels=4, tdim=8
)


def run(model: MMDiT) -> Tensor:
    with torch.no_grad():
        return model(X, T, COND, GRIDS)


def some_lora(seed: int) -> dict[str, lora.LowRank]:
    generator = torch.Generator().manual_seed(seed)
    names = ("blocks.0.attn.wq", "blocks.4.mlp.up", "txtmlp.1")
    shapes = {name: m.weight.shape for name, m in tiny_model(0, DEEP).named_modules() if isinstance(m, nn.Linear)}
    return {
        name: lora.LowRank(
            a=torch.randn(2, shapes[name][1], generator=generator) / 4,
            b=torch.randn(shapes[name][0], 2, generator=generator) / 4,
            alpha=3.0,
        )
        for name in names
    }


@pytest.fixture
def file(tmp_path):
    model = tiny_model(1, DEEP)
    weights.save(tmp_path / "model.safetensors", model.state_dict(), DEEP)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numbers_are_those_of_the_whole_model_bit_for_bit(file, where, kind, dtype):
    whole = weights.load(file, dtype=dtype, quantise=kind)
    want = run(whole)
    if where == "memory":
        offload.from_memory(whole, "cpu")
        offloaded = whole
    else:
        offloaded = offload.from_disk(file, dtype=dtype, quantise=kind)
        assert all(p.is_meta for p in offloaded.blocks.parameters())
    for _ in range(2):
        assert torch.equal(run(offloaded), want)


def test_a_quantised_file_and_a_diffusers_folder_are_streamed_as_they_are(file, tmp_path):
    model = weights.load(file)
    weights.save_diffusers(tmp_path / "folder", model.state_dict(), DEEP, shard_bytes=200_000)
    assert torch.equal(run(offload.from_disk(tmp_path / "folder")), run(model))
    quantise(model, "int8")
    weights.save(tmp_path / "int8.safetensors", model.state_dict(), DEEP)
    assert torch.equal(run(offload.from_disk(tmp_path / "int8.safetensors")), run(model))


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("kind", [None, "int8"])
def test_adapters_come_along_are_exchanged_and_taken_off(file, where, kind):
    plain = weights.load(file, quantise=kind)
    offloaded = weights.load(file, quantise=kind) if where == "memory" else offload.from_disk(file, quantise=kind)
    lora.attach(offloaded, some_lora(1))
    if where == "memory":
        offload.from_memory(offloaded, "cpu")
    lora.attach(plain, some_lora(1))
    assert torch.equal(run(offloaded), run(plain))
    lora.detach(offloaded)
    lora.detach(plain)
    lora.attach(offloaded, some_lora(2), 0.5)
    lora.attach(plain, some_lora(2), 0.5)
    assert torch.equal(run(offloaded), run(plain))
    lora.rescale(offloaded, 0)
    lora.detach(plain)
    assert torch.equal(run(offloaded), run(plain))
    lora.detach(offloaded)
    assert torch.equal(run(offloaded), run(plain))


def test_weights_that_change_between_calls_are_seen(file):
    plain, offloaded = weights.load(file), weights.load(file)
    offload.from_memory(offloaded, "cpu")
    run(offloaded)
    kept = lora.fold_in(offloaded, some_lora(1))
    before = run(plain)
    lora.fold_in(plain, some_lora(1))
    assert torch.equal(run(offloaded), run(plain))
    lora.restore(offloaded, kept)
    assert torch.equal(run(offloaded), before)
    with pytest.raises(ValueError, match="streamed from a file"):
        lora.fold_in(offload.from_disk(file), some_lora(1))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_block_leaves_when_it_is_done_and_the_next_has_come_by_then(file, where, monkeypatch):
    sent = {number: threading.Event() for number in range(5)}
    send = offload.Offload._send

    def seen(self: offload.Offload, number: int) -> dict[str, Tensor]:
        found = send(self, number)
        sent[number].set()
        return found

    monkeypatch.setattr(offload.Offload, "_send", seen)
    model = offload.from_disk(file) if where == "disk" else weights.load(file)
    if where == "memory":
        offload.from_memory(model, "cpu")
    visitors: list[weakref.ref[Tensor]] = []

    def look(number: int, layer: nn.Module, _: object) -> None:
        assert isinstance(layer, nn.Linear)
        assert not layer.weight.is_meta
        assert number == 4 or sent[number + 1].wait(20), "the next block is fetched while this one computes"
        assert number > 2 or not sent[number + 2].is_set(), "and the one after it is not"
        gc.collect()
        assert not any(visitor() is not None for visitor in visitors)
        visitors.append(weakref.ref(layer.weight))

    for number, block in enumerate(model.blocks):
        block.get_submodule("attn.wo").register_forward_pre_hook(partial(look, number))
    run(model)
    assert len(visitors) == 5


def test_it_is_taken_off_again(file):
    model, threads = weights.load(file), set(threading.enumerate())
    want, state = run(model), {name: id(tensor) for name, tensor in model.named_parameters()}
    handle = offload.from_memory(model, "cpu")
    run(model)
    assert set(threading.enumerate()) - threads
    handle.remove()
    assert torch.equal(run(model), want)
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == state
    assert set(threading.enumerate()) <= threads


def test_an_error_in_a_block_leaves_the_model_as_it_was(file, monkeypatch):
    model = weights.load(file)
    want, handle = run(model), offload.from_memory(model, "cpu")
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    hook = model.blocks[2].get_submodule("mlp").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model)
    hook.remove()
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    handle._coming[3].result()  # block 3 had been asked for before the error
    model.get_parameter("blocks.3.mlp.up.weight").data.mul_(1.5)
    assert not torch.equal(run(model), want)


def test_training_an_offloaded_block_is_refused(file):
    model = offload.from_disk(file)
    lora.attach(model, some_lora(1))
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model(X, T, COND, GRIDS)


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_on_a_gpu_at_most_two_blocks_are_there(tmp_path, where):
    config = replace(DEEP, features=1024, heads=8, kvheads=4, layers=12)
    model = tiny_model(0, config)
    weights.save(tmp_path / "a.safetensors", model.state_dict(), config)
    block = sum(p.nbytes for p in model.blocks[0].parameters())
    rest = sum(p.nbytes for p in model.parameters()) - 12 * block
    inputs = (X.cuda(), T.cuda(), Conditioning(COND.states.cuda(), COND.lengths), GRIDS)
    with torch.no_grad():
        want = weights.load(tmp_path / "a.safetensors", device="cuda")(*inputs)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if where == "memory":
            offload.from_memory(model, "cuda")
            assert all(p.is_pinned() for p in model.blocks.parameters())
        else:
            model = offload.from_disk(tmp_path / "a.safetensors", device="cuda")
        for _ in range(3):
            assert torch.equal(model(*inputs), want)
    assert torch.cuda.max_memory_allocated() <= rest + 3 * block + 2**24


def test_a_file_that_does_not_fit_is_refused_as_by_load(tmp_path):
    state = tiny_model(0, tiny()).state_dict()
    state["blocks.1.attn.wqs.weight"] = state.pop("blocks.1.attn.wq.weight")
    weights.write_tensors(tmp_path / "a.safetensors", state, {})
    with pytest.raises(ValueError, match=r"1 tensors missing \(blocks\.1\.attn\.wq\.weight\)"):
        offload.from_disk(tmp_path / "a.safetensors")


MEASURE = """
import sys, torch
from krea_model import offload, weights
from krea_model.interfaces import Conditioning
torch.set_num_threads(1)
def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(key))
mode, path = sys.argv[1:]
states = torch.randn(20, 3, 64)
before = memory('VmRSS'); open('/proc/self/clear_refs', 'w').write('5')
model = weights.load(path) if mode == 'whole' else offload.from_disk(path)
with torch.inference_mode():
    out = model(torch.randn(16, 16, dtype=torch.float32), torch.tensor([0.5]), Conditioning(states, (20,)), [(4, 4)])
print(memory('VmHWM') - before)
"""


@pytest.mark.slow
def test_a_model_larger_than_its_memory_runs_from_the_disk(tmp_path):
    config = Config(
        features=1024, layers=24, heads=8, kvheads=4, txtdim=64, txtlayers=3, txtheads=2, txtkvheads=2, channels=4
    )
    model = MMDiT(config).bfloat16()
    fill(model)
    weights.save(tmp_path / "a.safetensors", model.state_dict(), config)
    size = sum(p.nbytes for p in model.parameters())
    block = sum(p.nbytes for p in model.blocks[0].parameters())
    del model
    peaks = {}
    for mode in ("whole", "disk"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, mode, str(tmp_path / "a.safetensors")],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        peaks[mode] = int(done.stdout)
    assert peaks["whole"] >= size
    assert peaks["disk"] <= size - 24 * block + 4 * block + 64 * 2**20
