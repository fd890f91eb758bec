"""What each way to save memory costs: `python benchmarks/memory.py [--json]`, on Linux.

A model of random weights is written to a file in bf16. Each mode loads it in a process of its own and runs steps (one
forward pass of one picture each). The table shows the peak of the process above its size before loading (and of the
GPU's memory, if there is one), the median time of a step, on the clock and on the processors, and how far the output
lies from that of bf16, in units of its standard deviation. On a machine without a GPU the blocks that are offloaded
lie in the memory that is measured.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from krea_model import offload, weights
from krea_model.configs import Config
from krea_model.interfaces import Conditioning
from krea_model.mmdit import MMDiT
from krea_model.testing import fill
from safetensors.torch import load_file, save_file
from torch import Tensor

MODES = ("fp32", "bf16", "int8", "fp8", "offload", "disk", "disk-int8")
ABOUT = {
    "fp32": "whole, fp32",
    "bf16": "whole, bf16",
    "int8": "whole, blocks in int8",
    "fp8": "whole, blocks in fp8",
    "offload": "blocks wait in memory, bf16",
    "disk": "blocks read from the file, bf16",
    "disk-int8": "blocks read from a file in int8",
}


def size(features: int, layers: int) -> Config:
    """A model of the released proportions with heads of 64."""
    heads = features // 64
    return Config(
        features=features,
        layers=layers,
        heads=heads,
        kvheads=heads // 2 if heads % 2 == 0 else heads,
        txtdim=256,
        txtlayers=12,
        txtheads=4,
        txtkvheads=4,
    )


def prepare(folder: Path, config: Config) -> None:
    """Write the model in bf16, and quantised to int8."""
    model = MMDiT(config)
    fill(model)
    weights.save(folder / "bf16.safetensors", model.state_dict(), config, torch.bfloat16)
    del model
    packed = weights.load(folder / "bf16.safetensors", quantise="int8")
    weights.save(folder / "int8.safetensors", packed.state_dict(), config)


def build(mode: str, folder: Path, device: str) -> MMDiT:
    """The model as the mode has it."""
    file, half = folder / "bf16.safetensors", torch.bfloat16
    if mode == "fp32":
        return weights.load(file, dtype=torch.float32, device=device)
    if mode == "int8":
        return weights.load(file, dtype=half, device=device, quantise="int8")
    if mode == "fp8":
        return weights.load(file, dtype=half, device=device, quantise="fp8")
    if mode == "offload":
        model = weights.load(file, dtype=half)
        offload.from_memory(model, device)
        return model
    if mode == "disk":
        return offload.from_disk(file, dtype=half, device=device)
    if mode == "disk-int8":
        return offload.from_disk(folder / "int8.safetensors", dtype=half, device=device)
    return weights.load(file, dtype=half, device=device)


@torch.inference_mode()
def run(model: MMDiT, side: int, repeats: int, device: str) -> tuple[Tensor, float, float]:
    """The output of a step, its median time and processor time in seconds, after one that does not count."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    x = torch.randn(side**2, config.token_features, generator=generator).to(device)
    states = torch.randn(60, config.txtlayers, config.txtdim, generator=generator).to(device)
    t, taken, worked, out = torch.tensor([0.5], device=device), [], [], x
    for number in range(repeats + 1):
        start, busy = time.perf_counter(), time.process_time()
        out = model(x, t, Conditioning(states, (60,)), [(side, side)]).float().cpu()
        if number:
            taken.append(time.perf_counter() - start)
            worked.append(time.process_time() - busy)
    return out, statistics.median(taken), statistics.median(worked)


def memory(key: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def child(mode: str, folder: Path, options: argparse.Namespace) -> None:
    """Measure one mode, in this process."""
    torch.set_num_threads(options.threads)
    if options.device != "cpu":
        torch.zeros(1, device=options.device)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    model = build(mode, folder, options.device)
    out, seconds, processor = run(model, options.side, options.repeats, options.device)
    save_file({"out": out}, folder / f"{mode}.out")
    gpu = torch.cuda.max_memory_allocated() if options.device != "cpu" else 0
    peak = memory("VmHWM") - before
    figures = {"peak_mb": peak / 1e6, "gpu_mb": gpu / 1e6, "seconds": seconds, "processor_s": processor}
    print(json.dumps(figures))


def measured(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of every mode."""
    config = size(options.features, options.layers)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, config)
        with torch.device("meta"):
            model = MMDiT(config)
        count, block = (sum(p.numel() for p in part.parameters()) for part in (model, model.blocks[0]))
        print(f"{count / 1e6:.0f} million parameters, {block / 1e6:.1f} in each of {config.layers} blocks", flush=True)
        plain = [f"--{key}={getattr(options, key)}" for key in ("side", "repeats", "threads", "device")]
        for mode in MODES:
            command = [sys.executable, __file__, "--mode", mode, "--folder", name, *plain]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[mode] = json.loads(done.stdout.splitlines()[-1])
        want = load_file(folder / "bf16.out")["out"]
        for mode in MODES:
            far = (load_file(folder / f"{mode}.out")["out"] - want).abs() / want.std()
            found[mode] |= {"max": float(far.max()), "mean": float(far.mean())}
    return found


def table(found: dict[str, dict[str, float]], device: str) -> str:
    """The figures as a table in Markdown."""
    gpu = device != "cpu"
    head = ["mode", "peak memory, MB", *(["GPU, MB"] if gpu else []), "time per step, s", "processor time, s"]
    head += ["max deviation", "mean"]
    rows = [head, ["---"] * len(head)]
    for mode, one in found.items():
        parts = [ABOUT[mode], f"{one['peak_mb']:.0f}", *([f"{one['gpu_mb']:.0f}"] if gpu else [])]
        times = [f"{one[key]:.3f}" for key in ("seconds", "processor_s")]
        rows.append([*parts, *times, f"{one['max']:.4f}", f"{one['mean']:.5f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the table, and one JSON object in the last line if asked."""
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--features", type=int, default=1536, help="width of the model, a multiple of 64")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--side", type=int, default=16, help="tokens down and across the picture (16 pixels each)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        child(options.mode, options.folder, options)
        return
    found = measured(options)
    print(table(found, options.device))
    if options.json:
        print(json.dumps({mode: {key: round(value, 5) for key, value in one.items()} for mode, one in found.items()}))


if __name__ == "__main__":
    main()
