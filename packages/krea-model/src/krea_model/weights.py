"""Build the model from a checkpoint, write it in either layout, average several. All of it tensor by tensor.

Inside the program a checkpoint always has the original names and shapes; `checkpoint` reads every layout that exists.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from krea_model.checkpoint import Checkpoint, check_fit, dtypes_of, metadata_of, shapes_of
from krea_model.configs import Config
from krea_model.devices import place
from krea_model.inputs import check_dtype
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers
from krea_model.plain import is_number, is_whole
from krea_model.quantise import Kind, is_target, pack, prepare
from krea_model.sizes import diffusers_config
from krea_model.tensorfiles import write_json, write_stream

__all__ = [
    "Checkpoint",
    "average",
    "check_for_diffusers",
    "load",
    "read_tensor",
    "save",
    "save_diffusers",
    "write_tensors",
]

STEM = "diffusion_pytorch_model"  # diffusers' name for the weights of a part
SHARD_BYTES = 10_000_000_000  # diffusers' own limit


def load(
    path: str | Path,
    *,
    config: Config | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quantise: Kind | None = None,
) -> MMDiT:
    """The model of a checkpoint, strictly loaded; at no time is more than one tensor held twice.

    dtype: of the parameters (the norms stay fp32, as in diffusers); None keeps what is stored.
    config: sizes, if neither the shapes nor the files beside them tell.
    quantise: store the linear layers of the blocks in int8 or fp8, each as soon as it is read. A file that `save` wrote
    from a quantised model loads quantised without being asked.
    """
    check_dtype(dtype)
    checkpoint, device = Checkpoint(path), place(device)
    model = skeleton(checkpoint, config, quantise)
    state: dict[str, Tensor] = {}
    for name in checkpoint:
        for part, tensor in read_tensor(checkpoint, name, dtype, quantise).items():
            state[part] = tensor.to(device)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def skeleton(checkpoint: Checkpoint, config: Config | None = None, quantise: Kind | None = None) -> MMDiT:
    """The model of a checkpoint on the meta device, after a check that its tensors fit; see `load`."""
    if quantise is not None and checkpoint.quantised not in (None, quantise):
        raise ValueError(f"{checkpoint.path} is quantised to {checkpoint.quantised}, not {quantise}; ask for that")
    config = config or checkpoint.config()
    check_fit(str(checkpoint.path), checkpoint.shapes, config, checkpoint.quantised)
    _check_types(checkpoint)
    with torch.device("meta"):
        model = MMDiT(config)
    kind = checkpoint.quantised or quantise
    if kind is not None:
        prepare(model, kind)
    return model


def read_tensor(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype | None = None, quantise: Kind | None = None
) -> dict[str, Tensor]:
    """One tensor of a checkpoint as the model holds it, in memory of its own: with its scale if it is quantised."""
    tensor = checkpoint[name]
    if checkpoint.quantised is not None and (is_target(name) or name.endswith("_scale")):
        return {name: tensor.clone()}
    if quantise is not None and is_target(name):
        packed, scale = pack(tensor, quantise)
        return {name: packed, f"{name}_scale": scale}
    kept = torch.float32 if name.endswith(".scale") and dtype is not None else dtype
    return {name: tensor.to(dtype=kept, copy=True)}  # never the map of the file


def save(path: str | Path, state: Mapping[str, Tensor], config: Config, dtype: torch.dtype | None = None) -> None:
    """Write one file in the original layout, its sizes in the metadata; the file appears only when it is complete.

    state: of a model, quantised or not, or a `Checkpoint`; its tensors are converted one at a time.
    """
    kind = _kind(state)
    shapes, dtypes = shapes_of(state), dtypes_of(state)
    check_fit("the state to save", shapes, config, kind)
    _check_storable(state, dtype)
    layout = {name: (_saved_type(name, dtypes[name], dtype, kind), shape) for name, shape in shapes.items()}
    write_stream(path, layout, lambda name: _as(name, state[name], layout[name][0]), metadata_of(config, kind))


def save_diffusers(
    folder: str | Path,
    state: Mapping[str, Tensor],
    config: Config,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that diffusers' `Krea2Transformer2DModel.from_pretrained` loads; `config.json` comes last.

    Above `shard_bytes` the weights are divided over several files, with an index, as diffusers does. What the folder
    held is replaced once all is written, so `state` may be a checkpoint of that folder.
    """
    check_for_diffusers(state, config, dtype)
    if not is_whole(shard_bytes, 1):
        raise ValueError(f"shard_bytes is {shard_bytes!r}; give the most bytes of one file, such as 10_000_000_000")
    shapes, dtypes = shapes_of(state), dtypes_of(state)
    layout = {name: (dtype or dtypes[name], _diffusers_shape(name, shape)) for name, shape in shapes.items()}
    shards = _shards(layout, shard_bytes)
    files = [f"{STEM}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(files) > 1 else [f"{STEM}.safetensors"]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".new-", dir=folder) as fresh:
        for file, names in zip(files, shards, strict=True):
            _write_shard(Path(fresh) / file, {name: layout[name] for name in names}, lambda name: state[name])
        if len(files) > 1:
            where = {to_diffusers(name): file for file, names in zip(files, shards, strict=True) for name in names}
            index = {"metadata": {"total_size": sum(map(_size, layout.values()))}, "weight_map": where}
            write_json(Path(fresh) / f"{STEM}.safetensors.index.json", index)
        for old in (folder / "config.json", *folder.glob(f"{STEM}*.safetensors*")):
            old.unlink(missing_ok=True)  # with the configuration gone, nothing takes the folder for whole
        for new in Path(fresh).iterdir():
            os.replace(new, folder / new.name)
    write_json(folder / "config.json", diffusers_config(config))


def check_for_diffusers(state: Mapping[str, Tensor], config: Config, dtype: torch.dtype | None = None) -> None:
    """ValueError, with nothing touched, for a state that `save_diffusers` could not write."""
    if _kind(state) is not None:
        raise ValueError("diffusers cannot load our quantised weights; write the folder from the bf16 checkpoint")
    check_fit("the state to save", shapes_of(state), config)
    _check_storable(state, dtype)


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted sum of checkpoints (or state dicts), one tensor at a time in fp32; dtypes are those of the first.

    weights: one per state, summing to 1 (they may be negative); None means equal ones.
    """
    if not states:
        raise ValueError("no states to average; give at least one")
    weights = [1 / len(states)] * len(states) if weights is None else weights
    if len(weights) != len(states) or not all(map(is_number, weights)) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"{len(states)} states with weights {list(weights)}: give one weight each, summing to 1")
    if any(_kind(state) is not None for state in states):
        raise ValueError("a quantised state cannot be averaged; average the bf16 checkpoints and quantise the result")
    for other in states[1:]:
        odd = sorted(set(shapes_of(states[0]).items()) ^ set(shapes_of(other).items()))
        if odd:
            raise ValueError(
                f"the states to average differ in {len({name for name, _ in odd})} names or shapes, first {odd[0][0]}; "
                "average like with like"
            )
    return {name: _mean([state[name] for state in states], weights) for name in states[0]}


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name and rename it: never half a file under the real name."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_stream(path, layout, tensors.__getitem__, metadata)


def _check_storable(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"weights in {dtype!r} hold nothing; save them in bfloat16 or float32, or use `quantise`")
    if not isinstance(state, Checkpoint) and any(tensor.is_meta for tensor in state.values()):
        raise ValueError("blocks of this model are in its file, not in memory; save from a `Checkpoint` of that file")


def _as(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    found = tensor.to(dtype=dtype)
    if dtype == torch.float16 and bool(found.isinf().any()) and bool(tensor.isfinite().all()):
        raise ValueError(f"{name} does not fit into float16 (its largest is {tensor.abs().max():.3g}); use bfloat16")
    return found


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros(tensors[0].shape)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.float().cpu(), alpha=weight)
    return total.to(tensors[0].dtype)


def _kind(state: Mapping[str, Tensor]) -> Kind | None:
    shapes_of(state)  # an error for what is no state
    if isinstance(state, Checkpoint):
        return state.quantised
    scaled = next((name.removesuffix("_scale") for name in state if name.endswith(".weight_scale")), None)
    if scaled is None:
        return None
    return "int8" if state[scaled].dtype == torch.int8 else "fp8"


def _saved_type(name: str, stored: torch.dtype, wanted: torch.dtype | None, kind: Kind | None) -> torch.dtype:
    quantised = kind is not None and (is_target(name) or name.endswith("_scale"))
    return stored if quantised or wanted is None else wanted


def _check_types(checkpoint: Checkpoint) -> None:
    odd = [
        f"{name} as {dtype}"
        for name, dtype in checkpoint.dtypes.items()
        if dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        and not (checkpoint.quantised and is_target(name))
    ]
    if odd:
        raise ValueError(
            f"{checkpoint.path} holds {len(odd)} tensors of types that need a scale, first {odd[0]}; use the bf16 file"
        )


def _diffusers_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (6, math.prod(shape) // 6) if name.endswith(".mod.lin") else shape


def _size(entry: tuple[torch.dtype, tuple[int, ...]]) -> int:
    return entry[0].itemsize * math.prod(entry[1])


def _shards(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, entry in layout.items():
        if shards[-1] and filled + _size(entry) > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _size(entry)
    return shards


def _write_shard(
    file: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], read: Callable[[str], Tensor]
) -> None:
    """One file of diffusers' layout; `layout` has original names and diffusers' shapes."""
    original = {to_diffusers(name): name for name in layout}
    entries = {other: layout[name] for other, name in original.items()}

    def convert(other: str) -> Tensor:
        dtype, shape = entries[other]
        return read(original[other]).to(dtype=dtype).reshape(shape)

    write_stream(file, entries, convert, {"format": "pt"})
