"""Encoded prompts on disk: each distinct prompt is encoded once, then looked up.

`TextCache` is one table of prompts known beforehand; `CachedEncoder` grows a folder as prompts come.
"""

import hashlib
import json
import logging
import os
import re
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from krea_model.encoding import prompt_list
from krea_model.interfaces import Conditioning, TextEncoder
from krea_model.weights import write_tensors

__all__ = ["CachedEncoder", "TextCache", "fingerprint", "prune"]

STALE_S = 3600.0  # a temporary file older than this was left by a process that died

log = logging.getLogger(__name__)


class TextCache:
    """A `TextEncoder` that only looks up. `name` says which encoder made the states; another one's cache is refused."""

    def __init__(self, name: str, states: Tensor, lengths: Sequence[int], prompts: Sequence[str]) -> None:
        self.name, self.states, self.lengths = name, states, tuple(lengths)
        fit = len(self.lengths) == len(prompts) == len(set(prompts))
        if not fit or states.ndim != 3 or sum(lengths) != len(states):
            raise ValueError(
                f"states of shape {tuple(states.shape)} with {len(self.lengths)} lengths for {len(prompts)} prompts do "
                "not fit; give (sum of lengths, taps, width), and every prompt once"
            )
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        self.where = {p: (a, b) for p, a, b in zip(prompts, ends[:-1], ends[1:], strict=True)}

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """States of prompts that were encoded before; KeyError names the first that was not."""
        spans = [self.where[p] for p in prompt_list(prompts)]
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
        """Encode the distinct prompts, in sorted order; ValueError for none."""
        given = prompt_list(prompts if isinstance(prompts, str) else list(prompts))
        wanted = sorted(set(given), key=lambda p: (len(p), p))
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
        """Read what `save` wrote; ValueError if another encoder made it, or it is damaged: then `build` it again."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                maker = metadata.get("encoder")
                states, lengths = file.get_tensor("states"), file.get_tensor("lengths").tolist()
            whole = cls(name, states, lengths, json.loads(metadata["prompts"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no encoded prompts ({error}); delete it and encode them again") from error
        if maker != name:
            raise ValueError(f"{path} was encoded by {maker!r}, not {name!r}; delete it")
        return whole


def fingerprint(*tensors: Tensor) -> str:
    """Sixteen hex digits that change with any of the tensors: part of an encoder's name."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class CachedEncoder:
    """A `TextEncoder` that keeps every prompt's states in a folder and encodes only those that are not there.

    One safetensors file per prompt, `folder/name/ab/<sha256 of the text>.safetensors`, in the number format of the
    encoder. Several processes may share the folder. A damaged file is encoded again, a full disk costs only the
    keeping, and both are logged. Krea 2's states take 61 kB per token in bf16: see `prune`.

    encoder: asked for missing prompts alone; it may be a function that loads the weights when it is first called.
    name: which encoder made the states, by default `encoder.name`; another name never shares a file.
    device: where states are wanted; None is the encoder's device if it has one, else the CPU.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        folder: str | Path,
        name: str | None = None,
        *,
        device: str | torch.device | None = None,
    ) -> None:
        name = getattr(encoder, "name", None) if name is None else name
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(
                f"name of the encoder is {name!r}; give letters, digits, '.', '_' and '-', as a folder has"
            )
        self.encoder, self.name, self.device = encoder, name, device
        self.folder = Path(folder) / name

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """States of the prompts, in their order; each distinct one is read or encoded once."""
        wanted = prompt_list(prompts)
        found = {prompt: self._read(prompt) for prompt in dict.fromkeys(wanted)}
        missing = [prompt for prompt, states in found.items() if states is None]
        if missing:
            made = self.encoder(missing)
            for prompt, states in zip(missing, made.states.split(list(made.lengths)), strict=True):
                self._write(prompt, states)
                found[prompt] = states
        device = getattr(self.encoder, "device", "cpu") if self.device is None else self.device
        parts = [states.to(device) for prompt in wanted if (states := found[prompt]) is not None]
        return Conditioning(torch.cat(parts), tuple(len(part) for part in parts))

    def path(self, prompt: str) -> Path:
        """Where a prompt's states are kept."""
        key = _key(prompt)
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, prompt: str) -> Tensor | None:
        path = self.path(prompt)
        try:
            with safe_open(path, "pt") as file:
                metadata, states = file.metadata() or {}, file.get_tensor("states")
            if states.ndim != 3 or not states.is_floating_point() or metadata != self._metadata(prompt, states):
                raise ValueError("its content is not what was written")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            log.warning("cached states of a prompt are damaged and made again: %s: %s", path, error)
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(path)
        return states

    def _write(self, prompt: str, states: Tensor) -> None:
        path = self.path(prompt)
        states = states.cpu().contiguous()
        part = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(save({"states": states}, self._metadata(prompt, states)))
            os.replace(part, path)
        except OSError as error:
            log.warning("states of a prompt are not kept: %s", error)
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _metadata(self, prompt: str, states: Tensor) -> dict[str, str]:
        checksum = zlib.crc32(states.contiguous().view(torch.uint8).numpy().data)
        return {"encoder": self.name, "prompt": _key(prompt), "crc32": f"{checksum:08x}"}


def prune(folder: str | Path, limit_bytes: int) -> int:
    """Delete the states used longest ago, of all encoders, until what is left fits; returns the bytes deleted.

    Safe beside processes that use the folder: they make again what they miss.
    """
    files, freed = [], 0
    for path in Path(folder).glob("*/??/*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            if re.fullmatch(r"[0-9a-f]{64}\.safetensors", path.name):  # nothing but what is written here
                files.append((stat.st_mtime, stat.st_size, path))
            elif re.fullmatch(r"\.[0-9a-f]{32}\.part", path.name) and stat.st_mtime < time.time() - STALE_S:
                path.unlink()
                freed += stat.st_size
    excess = sum(size for _, size, _ in files) - limit_bytes
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess, freed = excess - size, freed + size
    return freed


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
