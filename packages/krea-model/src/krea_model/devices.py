"""The device of a name, or one sentence that says why there is none."""

from typing import Any

import torch

__all__ = ["place"]


def place(device: str | torch.device) -> torch.device:
    """The device; ValueError for a name that torch does not know, or for hardware that this machine does not have."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device {device!r} is unknown; use "cpu", "cuda", "cuda:1" or "mps"') from error
    if found.type in ("cpu", "meta"):
        return found
    backend: Any = getattr(torch, found.type, None)
    count = backend.device_count() if backend is not None and backend.is_available() else 0
    if (found.index or 0) >= count:
        raise ValueError(
            f'device "{found}" is not there: torch {torch.__version__} finds {count} of type {found.type} on this '
            f"machine; use {'a smaller number' if count else chr(34) + 'cpu' + chr(34)}, or look at its driver"
        )
    return found
