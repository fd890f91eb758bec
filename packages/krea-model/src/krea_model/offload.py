"""Run a model whose blocks do not fit: they wait in memory, or in the file, and come to the device one by one.

While a block computes, the next one is fetched by a thread, on CUDA through pinned memory and a stream of its own.
At most two blocks are on the device. The numbers are bit for bit those of the whole model. For inference only.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from krea_model.checkpoint import Checkpoint
from krea_model.configs import Config
from krea_model.devices import place
from krea_model.inputs import check_dtype
from krea_model.mmdit import MMDiT
from krea_model.quantise import Kind
from krea_model.weights import read_tensor, skeleton

__all__ = ["Offload", "from_disk", "from_memory"]

Read = Callable[[int], dict[str, Tensor]]
"""Number of a block -> its tensors in the file, by their names in the block."""


class Offload:
    """Keeps the blocks of a model off the device; `remove` ends that, with the blocks where they wait.

    read: for blocks on the meta device, whose tensors are in a file. The model is frozen, and one thread at a time may
    call it.
    """

    def __init__(self, model: MMDiT, device: torch.device, read: Read | None = None) -> None:
        self.blocks, self.device, self._read = model.requires_grad_(False).blocks, device, read
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="krea-offload")
        self._coming: dict[int, Future[dict[str, Tensor]]] = {}
        self._resting: dict[int, dict[str, Tensor]] = {}
        self._hooks = [model.register_forward_pre_hook(self._begin)]
        for number, block in enumerate(self.blocks):
            self._hooks.append(block.register_forward_pre_hook(partial(self._bring, number)))
            self._hooks.append(block.register_forward_hook(partial(self._take_away, number), always_call=True))

    def remove(self) -> None:
        """Take the hooks off; blocks that waited in memory are plain blocks again."""
        for hook in self._hooks:
            hook.remove()
        self._worker.shutdown(cancel_futures=True)
        self._coming.clear()

    def _begin(self, *_: Any) -> None:
        self._coming.clear()  # of a pass that ended in an error
        self._ask(0)

    def _bring(self, number: int, block: nn.Module, _: Any) -> None:
        if torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters()):
            raise RuntimeError("offloaded blocks cannot be trained: their adapters would get no gradient; use no_grad")
        tensors = self._ask(number).result()
        del self._coming[number]
        if self._stream is not None:
            for tensor in tensors.values():
                tensor.record_stream(torch.cuda.current_stream(self.device))
        self._resting[number] = {name: slot[key] for name, slot, key in _slots(block)}
        for name, slot, key in _slots(block):
            slot[key] = _like(slot[key], tensors[name])
        if number + 1 < len(self.blocks):
            self._ask(number + 1)

    def _take_away(self, number: int, block: nn.Module, *_: Any) -> None:
        resting = self._resting.pop(number, {})
        for name, slot, key in _slots(block):
            slot[key] = resting.get(name, slot[key])

    def _ask(self, number: int) -> Future[dict[str, Tensor]]:
        if number not in self._coming:
            self._coming[number] = self._worker.submit(self._send, number)
        return self._coming[number]

    def _send(self, number: int) -> dict[str, Tensor]:
        """In the worker: the tensors of a block, on the device when this returns."""
        stored = {} if self._read is None else self._read(number)
        found = {name: slot[key].detach() for name, slot, key in _slots(self.blocks[number])}
        if self._stream is None:
            return {
                name: stored[name].to(self.device) if tensor.is_meta else tensor.to(self.device, copy=True)
                for name, tensor in found.items()
            }
        with torch.cuda.stream(self._stream):
            sent = {
                name: (stored[name] if tensor.is_meta else tensor).to(self.device, non_blocking=True)
                for name, tensor in found.items()
            }
        self._stream.synchronize()
        return sent


def from_memory(model: MMDiT, device: torch.device | str) -> Offload:
    """Move a model to a device except for its blocks, which stay on the host (pinned for CUDA) and visit in turn.

    Adapters may be attached before or after, and the blocks' weights changed between calls. The model is frozen.
    """
    device = place(device)
    model.blocks.cpu()
    for name, part in model.named_children():
        if name != "blocks":
            part.to(device)
    if device.type == "cuda":
        for _, slot, key in _slots(model.blocks):
            slot[key] = _like(slot[key], slot[key].detach().pin_memory())
    return Offload(model, device)


def from_disk(
    path: str | Path,
    *,
    config: Config | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    quantise: Kind | None = None,
) -> MMDiT:
    """A model that reads its blocks from the checkpoint each time they are needed: for less memory than the model has.

    dtype, quantise: as in `weights.load`; the conversion is repeated at each visit, so write the file in what you want
    to run (`weights.save`) before. The file must stay as it is. ValueError as `weights.load`.
    """
    check_dtype(dtype)
    checkpoint, device = Checkpoint(path), place(device)
    model = skeleton(checkpoint, config, quantise)
    state = {
        part: tensor.to(device)
        for name in checkpoint
        if not name.startswith("blocks.")
        for part, tensor in read_tensor(checkpoint, name, dtype, quantise).items()
    }
    model.load_state_dict(state, strict=False, assign=True)  # `skeleton` saw that no name is missing or unknown
    read = partial(_stored, checkpoint, _names(checkpoint), dtype, quantise)
    Offload(model, device, read)  # it lives in the hooks
    return model.eval()


def _names(checkpoint: Checkpoint) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name in checkpoint:
        if name.startswith("blocks."):
            names.setdefault(int(name.split(".")[1]), []).append(name)
    return names


def _stored(
    checkpoint: Checkpoint,
    names: Mapping[int, list[str]],
    dtype: torch.dtype | None,
    quantise: Kind | None,
    number: int,
) -> dict[str, Tensor]:
    return {
        part.removeprefix(f"blocks.{number}."): tensor
        for name in names[number]
        for part, tensor in read_tensor(checkpoint, name, dtype, quantise).items()
    }


def _slots(module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every parameter and buffer of a module: its name, and the dictionary and key that hold it."""
    for prefix, part in module.named_modules():
        for slot in (part._parameters, part._buffers):
            for key in [key for key, value in slot.items() if value is not None]:
                yield f"{prefix}.{key}" if prefix else key, slot, key


def _like(before: Tensor, tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor, requires_grad=False) if isinstance(before, nn.Parameter) else tensor
