"""Choose an implementation of each operation for a device, once, and say in the log which and why."""

import functools
import logging
from collections.abc import Callable

from torch import Tensor

from krea_model.kernels import reference

__all__ = ["gate_output", "implementation", "rms_norm_modulate", "rotate", "swiglu"]

log = logging.getLogger(__name__)


def rms_norm_modulate(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, sample: Tensor) -> Tensor:
    """See `reference.rms_norm_modulate`."""
    return implementation("rms_norm_modulate", x.device.type)(x, weight, scale, shift, sample)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """See `reference.rotate`."""
    return implementation("rotate", x.device.type)(x, rope)


def gate_output(out: Tensor, gate: Tensor) -> Tensor:
    """See `reference.gate_output`."""
    return implementation("gate_output", out.device.type)(out, gate)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `reference.swiglu`."""
    return implementation("swiglu", gate.device.type)(gate, up)


@functools.cache
def implementation(operation: str, device: str) -> Callable[..., Tensor]:
    """The function that computes an operation on a type of device ("cpu", "cuda"); logs the choice the first time."""
    chosen, why = getattr(reference, operation), f"there is no kernel for {device}"
    if device == "cuda" and operation != "rms_norm_modulate":
        why = "there is no kernel for it yet"
    elif device == "cuda":
        try:
            from krea_model.kernels import triton_norm
        except ImportError as error:
            why = f"triton cannot be imported: {error}"
        else:
            chosen, why = triton_norm.rms_norm_modulate, "triton is installed"
    log.info("%s on %s: %s, because %s", operation, device, chosen.__module__, why)
    return chosen
