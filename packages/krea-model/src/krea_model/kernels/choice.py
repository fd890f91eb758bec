"""Choose an implementation of the operations for a type of device, once, and say in the log which and why."""

import logging
from types import ModuleType

import torch
from torch import Tensor

from krea_model.kernels import reference
from krea_model.spans import Spans

__all__ = ["gate_output", "gated_residual", "implementation", "norm_rotate", "rms_norm_modulate", "swiglu"]

log = logging.getLogger(__name__)
_kernels: dict[str, bool] = {}  # by type of device, as asked for


def rms_norm_modulate(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, spans: Spans) -> Tensor:
    """See `reference.rms_norm_modulate`."""
    return implementation(x.device.type).rms_norm_modulate(x, weight, scale, shift, spans)


def norm_rotate(x: Tensor, weight: Tensor, rope: Tensor) -> Tensor:
    """See `reference.norm_rotate`."""
    return implementation(x.device.type).norm_rotate(x, weight, rope)


def gate_output(out: Tensor, gate: Tensor) -> Tensor:
    """See `reference.gate_output`."""
    return implementation(out.device.type).gate_output(out, gate)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `reference.swiglu`."""
    return implementation(gate.device.type).swiglu(gate, up)


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor, spans: Spans) -> Tensor:
    """See `reference.gated_residual`."""
    return implementation(x.device.type).gated_residual(x, branch, gate, spans)


def implementation(device: str) -> ModuleType:
    """The module whose functions run on a type of device ("cpu", "cuda"); the first call for it logs the choice."""
    if not _has_kernels(device):
        return reference
    from krea_model.kernels import fused

    return fused


@torch.compiler.assume_constant_result  # a compiler asks once, while it traces, and keeps the answer
def _has_kernels(device: str) -> bool:
    if device not in _kernels:
        module, why = _choose(device)
        log.info("fused operations on %s: %s, because %s", device, module.__name__, why)
        _kernels[device] = module is not reference
    return _kernels[device]


def _choose(device: str) -> tuple[ModuleType, str]:
    if device != "cuda":
        return reference, f"there are no kernels for {device}"
    try:
        from krea_model.kernels import fused
    except ImportError as error:
        return reference, str(error)
    return fused, "Triton is installed"
