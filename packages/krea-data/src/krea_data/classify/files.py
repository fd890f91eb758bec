"""A head as one safetensors file: its numbers, and in the header its card."""

import json
from pathlib import Path

import numpy as np

from krea_data.classify.head import Head
from krea_data.classify.limits import Limits

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file
except ImportError as error:
    raise ImportError("saved heads need safetensors: pip install 'krea-data[classify]'") from error

__all__ = ["load", "save"]

_FORMAT = "krea-head/1"


def save(head: Head, path: Path) -> None:
    """Write the head, whole or not at all."""
    about = {
        "name": head.name,
        "embedder": head.embedder,
        "labels": head.labels,
        "limits": [head.limits.unsure, head.limits.yes],
        "card": dict(head.card),
        "version": head.version,
    }
    part = path.with_name(f".{path.name}.part")
    tensors = {"weights": head.weights.astype(np.float32), "bias": np.array([head.bias], dtype=np.float64)}
    save_file(tensors, part, {"format": _FORMAT, "head": json.dumps(about, ensure_ascii=False)})
    part.replace(path)


def load(path: Path) -> Head:
    """A head as it was saved; ValueError if the file holds something else or its numbers were changed."""
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT or set(file.keys()) != {"weights", "bias"}:
                raise ValueError(f"{path} holds {sorted(file.keys())} and no head; classify.files.save writes one")
            weights, bias = file.get_tensor("weights"), float(file.get_tensor("bias")[0])
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    about = json.loads(header["head"])
    head = Head(
        name=about["name"],
        embedder=about["embedder"],
        weights=weights,
        bias=bias,
        limits=Limits(*about["limits"]),
        labels=about["labels"],
        card=about["card"],
    )
    if head.version != about["version"]:
        raise ValueError(f"{path} says version {about['version']} and holds {head.version}; it was changed")
    return head
