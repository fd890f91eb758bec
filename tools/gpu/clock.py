"""Errors, times and rates: the measurements that every part of the check makes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tools.gpu.sizes import Sizes

__all__ = ["copy_rate", "each", "error", "measure", "product_rate", "rated_peak"]

# Dense bf16 operations per second with fp32 sums, from the makers' data sheets; the first name that fits counts.
PEAKS = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165.2e12,
    "A10": 125e12,
}


def error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference relative to the largest wanted value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def measure(call: Callable[[], Any], sizes: Sizes) -> tuple[float, float | None]:
    """Median milliseconds of a long call after a warm-up, and the peak of allocated GiB on a GPU."""
    cuda = sizes.device == "cuda"
    call()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    taken = []
    for _ in range(sizes.repeats):
        wait(sizes)
        start = time.perf_counter()
        call()
        wait(sizes)
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken), torch.cuda.max_memory_allocated() / 2**30 if cuda else None


def each(call: Callable[[], Any], sizes: Sizes, count: int = 10) -> float:
    """Median milliseconds of one of `count` short calls in a row: the host runs ahead, and its time does not show."""
    for _ in range(3):
        call()
    taken = []
    for _ in range(sizes.repeats):
        wait(sizes)
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait(sizes)
        taken.append((time.perf_counter() - start) * 1e3 / count)
    return statistics.median(taken)


def wait(sizes: Sizes) -> None:
    """Until the device has done everything that it was given."""
    if sizes.device == "cuda":
        torch.cuda.synchronize()


def copy_rate(sizes: Sizes) -> float:
    """Bytes per second of a large copy, read and written counted both."""
    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    return 2 * sizes.copied / (each(lambda: target.copy_(source), sizes) * 1e-3)


def product_rate(sizes: Sizes) -> float:
    """Operations per second of a large bf16 matrix product."""
    a, b = torch.randn(2, sizes.product, sizes.product, device=sizes.device, dtype=torch.bfloat16).unbind()
    return 2 * sizes.product**3 / (each(lambda: a @ b, sizes) * 1e-3)


def rated_peak(name: str) -> float | None:
    """The maker's bf16 operations per second for a device of this name, None where it is not known here."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)
