"""Numbers about a run: means over the last steps, throughput, memory, and the exact work of a forward pass."""

import sys
import time
from collections.abc import Mapping, Sequence

import torch
from krea_model.configs import Config
from krea_model.interfaces import Grids
from torch import Tensor

from krea_train.parallel import over_ranks

__all__ = ["Window", "forward_flops", "memory", "train_flops"]


class Window:
    """Metrics of the steps since the last reading, kept as tensors: nothing waits for the device until `read`."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Tensor]] = []
        self.images = 0
        self.start = time.monotonic()

    def add(self, metrics: Mapping[str, Tensor], images: int) -> None:
        """One step's scalar metrics, detached, and how many images it saw."""
        self.rows.append(metrics)
        self.images += images

    def read(self) -> dict[str, float]:
        """Means over steps and ranks where the metric was a number, seconds per step, images per second; then empty."""
        names = list({name: None for row in self.rows for name in row})
        means = [torch.stack([row[n].float() for row in self.rows if n in row]).nanmean() for n in names]
        out = dict(zip(names, over_ranks(torch.stack(means)).tolist(), strict=True))
        elapsed = max(time.monotonic() - self.start, 1e-9)
        out |= {"step_s": elapsed / max(len(self.rows), 1), "images_per_s": self.images / elapsed}
        self.rows, self.images, self.start = [], 0, time.monotonic()
        return out


def memory() -> dict[str, float]:
    """Largest resident memory of this process so far and, with a GPU in use, of its allocator; bytes."""
    out = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        out["memory_bytes"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    if torch.cuda.is_initialized():
        out["gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated())
    return out


def forward_flops(config: Config, grids: Grids, lengths: Sequence[int]) -> int:
    """Floating-point operations of the matrix products of one forward of `krea_model.MMDiT` on a flat batch.

    Equal to torch's FlopCounterMode. Attention is bidirectional: 4 s^2 D per sequence of s tokens and layer.
    """
    d, e, taps = config.features, config.txtdim, config.txtlayers
    images = [rows * cols for rows, cols in grids]
    tokens, text = sum(images) + sum(lengths), sum(lengths)
    block = 3 * d * d + 2 * d * (d // config.heads) * config.kvheads + 3 * d * config.mlp
    main = 2 * tokens * block + 4 * d * sum((i + t) ** 2 for i, t in zip(images, lengths, strict=True))
    fusion = 3 * e * e + 2 * e * (e // config.txtheads) * config.txtkvheads + 3 * e * config.txtmlp
    layerwise = 2 * text * taps * fusion + 4 * text * taps * taps * e
    refiner = 2 * text * fusion + 4 * e * sum(t * t for t in lengths)
    stage = 2 * (layerwise + refiner) + 2 * text * e * taps + 2 * text * (e * d + d * d)
    ends = 4 * sum(images) * config.token_features * d
    clock = 2 * len(images) * (config.tdim * d + d * d + 6 * d * d)
    return config.layers * main + stage + ends + clock


def train_flops(config: Config, grids: Grids, lengths: Sequence[int]) -> int:
    """Forward and backward of a step that trains every weight: three forwards. Recomputation does not count."""
    return 3 * forward_flops(config, grids, lengths)
