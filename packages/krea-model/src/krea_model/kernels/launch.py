"""How Triton kernels are launched: sizes of blocks, warps, and how many programs share a reduction."""

import functools
from typing import Any

import torch
import triton
from torch import Tensor

__all__ = ["along_rows", "options", "rows_per_program", "width"]

WAVES = 4  # programs per multiprocessor in a reduction: enough loads in flight, few partial sums
LEAST = 8  # tokens per program below which partial sums would cost more than they spread


def width(size: int, most: int = 1 << 16) -> int:
    """The block that holds `size` elements, at most `most`."""
    return min(triton.next_power_of_2(size), most)


def options(elements: int, each: int = 16) -> dict[str, Any]:
    """Warps for a block of so many elements, `each` per thread. Multiply and add may fuse: all sums are in fp32."""
    return {"num_warps": min(max(elements // (32 * each), 1), 16), "enable_fp_fusion": True}


def along_rows(x: Tensor) -> Tensor:
    """x itself if its last axis is dense, else a dense copy; kernels take the other strides as they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def rows_per_program(tokens: int, device: torch.device) -> int:
    """How many consecutive tokens a program of a reduction walks over."""
    return max(LEAST, triton.cdiv(tokens, WAVES * _processors(device)))


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1  # under Triton's interpreter
