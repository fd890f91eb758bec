"""The whole check: every part in turn, with the results so far written after each row."""

import argparse
import importlib.util
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from tools.gpu.attention import attention_rows
from tools.gpu.operations import error_rows, speed_rows
from tools.gpu.rows import Row, report, write
from tools.gpu.sizes import Sizes, dry, full
from tools.gpu.step import model_rows

__all__ = ["PARTS", "environment", "main", "rows"]

PARTS: tuple[Callable[[Sizes], Iterator[Row]], ...] = (error_rows, attention_rows, speed_rows, model_rows)


def environment(device: str) -> dict[str, str]:
    """Versions and the device, so that figures can be compared later."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for name in ("triton", "flash_attn", "liger_kernel"):
        found[name] = "installed" if importlib.util.find_spec(name) else "not installed"
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {"device": card.name, "capability": f"{card.major}.{card.minor}"}
        found["memory"] = f"{card.total_memory / 2**30:.1f} GiB"
    else:
        found["device"] = platform.processor() or platform.machine()
    return found


def rows(sizes: Sizes) -> Iterator[Row]:
    """All figures; a part that finds no time left becomes a remark."""
    for part in PARTS:
        if sizes.room():
            yield from part(sizes)
        else:
            yield Row(name=part.__name__, value=None, note="skipped: out of time")


def main(arguments: Sequence[str]) -> int:
    """Run everything and write the two files: 0 if every bound holds, 1 if not, 2 without a GPU."""
    parser = argparse.ArgumentParser(description="Everything that wants a GPU, in one run of under ten minutes.")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    chosen = parser.parse_args(arguments)
    if not chosen.dry_run and not torch.cuda.is_available():
        print("error: torch sees no GPU here; use --dry-run for a walk on the CPU", file=sys.stderr)
        return 2
    sizes = dry() if chosen.dry_run else full()
    found, done = environment(sizes.device), []
    for row in rows(sizes):
        done.append(row)
        write(chosen.out, found, done)
    print(report(found, done))
    return 1 if any(row.failed for row in done) else 0
