"""Encoded prompts on disk: each distinct prompt is encoded once, then looked up."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from krea_model.interfaces import Conditioning, TextEncoder
from krea_model.weights import write_tensors

__all__ = ["TextCache", "fingerprint"]


class TextCache:
    """A `TextEncoder` that only looks up. `name` says which encoder made the states; another one's cache is refused."""

    def __init__(self, name: str, states: Tensor, lengths: Sequence[int], prompts: Sequence[str]) -> None:
        self.name, self.states, self.lengths = name, states, tuple(lengths)
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        self.where = {p: (a, b) for p, a, b in zip(prompts, ends, ends[1:], strict=False)}

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """States of prompts that were encoded before; KeyError names the first that was not."""
        spans = [self.where[p] for p in prompts]
        return Conditioning(torch.cat([self.states[a:b] for a, b in spans]), tuple(b - a for a, b in spans))

    @classmethod
    def build(
        cls,
        name: str,
        encoder: TextEncoder,
        prompts: Iterable[str],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        batch: int = 256,
    ) -> "TextCache":
        """Encode the distinct prompts, in sorted order."""
        wanted = sorted(set(prompts), key=lambda p: (len(p), p))
        parts: list[Conditioning] = []
        for start in range(0, len(wanted), batch):
            parts.append(encoder(wanted[start : start + batch]))
            on_progress(min(start + batch, len(wanted)), len(wanted))
        lengths = [n for part in parts for n in part.lengths]
        return cls(name, torch.cat([part.states for part in parts]), lengths, wanted)

    def save(self, path: Path) -> None:
        """Write states and prompts to one safetensors file, whole or not at all."""
        metadata = {"encoder": self.name, "prompts": json.dumps(list(self.where), ensure_ascii=False)}
        write_tensors(path, {"states": self.states, "lengths": torch.tensor(self.lengths)}, metadata)

    @classmethod
    def load(cls, path: Path, name: str) -> "TextCache":
        """Read what `save` wrote; ValueError if another encoder made it."""
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("encoder") != name:
                raise ValueError(f"{path} was encoded by {metadata.get('encoder')!r}, not {name!r}; delete it")
            states, lengths = file.get_tensor("states"), file.get_tensor("lengths").tolist()
        return cls(name, states, lengths, json.loads(metadata["prompts"]))


def fingerprint(*tensors: Tensor) -> str:
    """Sixteen hex digits that change with any of the tensors: part of an encoder's name."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
