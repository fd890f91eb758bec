"""What a run measures: the full sizes for a GPU, and tiny ones that walk through the same code on a CPU."""

import time
from dataclasses import dataclass, field

from krea_model import configs

__all__ = ["Case", "Sizes", "dry", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A batch of images of one grid, with texts of these lengths."""

    name: str
    side: int
    texts: tuple[int, ...]
    compiled: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a run measures.

    lengths: sequences of the checks for correctness; stream: samples and tokens of each in the measurement of kernels,
    large enough that no cache holds them; product: side of the matrices and copied: bytes of the copy that set the
    rates; compiler: the backend of torch.compile; seconds: when what is left is skipped.
    """

    device: str
    config: configs.Config
    lengths: tuple[int, ...]
    stream: tuple[int, int]
    cases: tuple[Case, ...]
    repeats: int
    product: int
    copied: int
    compiler: str
    seconds: float
    started: float = field(default_factory=time.monotonic)

    def room(self, needed: float = 0.0) -> bool:
        """Whether so many more seconds fit."""
        return time.monotonic() - self.started + needed <= self.seconds


def full() -> Sizes:
    """About one billion parameters at 512 and 1024 pixels (16 pixels per token and side)."""
    cases = (
        Case(name="512px, equal texts", side=32, texts=(128,) * 4, compiled=True),
        Case(name="512px, ragged texts", side=32, texts=(16, 64, 192, 512), compiled=True),
        Case(name="1024px, ragged texts", side=64, texts=(64, 256)),
    )
    return Sizes(
        device="cuda",
        config=configs.base(),
        lengths=(1152, 1040, 1152, 4352),
        stream=(16, 4096),
        cases=cases,
        repeats=5,
        product=8192,
        copied=2**30,
        compiler="inductor",
        seconds=540,
    )


def dry() -> Sizes:
    """The same walk on the CPU, in two or three seconds."""
    cases = (
        Case(name="equal texts", side=3, texts=(5, 5), compiled=True),
        Case(name="ragged texts", side=3, texts=(2, 5)),
    )
    return Sizes(
        device="cpu",
        config=configs.tiny(),
        lengths=(9, 7, 9),
        stream=(2, 9),
        cases=cases,
        repeats=1,
        product=64,
        copied=2**16,
        compiler="eager",
        seconds=540,
    )
