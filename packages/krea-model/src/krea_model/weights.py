"""Checkpoints: read every layout in circulation tensor by tensor, build the model from one, write, average.

Inside the program a checkpoint always has the original names and shapes. Names: `names`; sizes: `sizes`.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from krea_model.configs import Config
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers, to_original
from krea_model.sizes import confirm_config, diffusers_config, infer_config

__all__ = [
    "Checkpoint",
    "average",
    "load",
    "save",
    "save_diffusers",
    "write_tensors",
]

SIZES = "krea_model.config"  # key in the metadata of files that `save` writes
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
UNUSED = ("last.up.weight", "last.down.weight")  # in some repacked files; no code of the model reads them
LIKELY = (
    ("lora_", "a LoRA; read it with krea_model.lora_files.read"),
    ("lokr_", "a LoKr adapter, which is not supported"),
    ("weight_scale", "a quantised checkpoint; use the bf16 file"),
    ("comfy_quant", "a quantised checkpoint; use the bf16 file"),
    ("double_blocks.", "a FLUX model"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("img_mlp.", "a Qwen-Image model"),
    ("input_blocks.", "a Stable Diffusion or SDXL model"),
    ("model.layers.", "a language model"),
    ("decoder.", "an autoencoder"),
    ("txtfusion.", "a Krea 2 model of another size, or an incomplete one"),
)


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a safetensors file or folder under their original names, each read when asked for.

    path: a `.safetensors` file, a `.safetensors.index.json` with its shards beside it, a diffusers transformer folder,
    or a pipeline folder with `transformer` in it. ValueError if it is none of these or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._where: dict[str, tuple[Path, str]] = {}
        for file in _files(self.path):
            with _open(file) as tensors:
                self.metadata |= tensors.metadata() or {}
                for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                    self._add(file, key, tuple(tensors.get_slice(key).get_shape()))

    def __getitem__(self, name: str) -> Tensor:
        file, key = self._where[name]
        with _open(file) as tensors:  # opened anew each time: an open map would keep all pages it has shown resident
            return tensors.get_tensor(key).reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def config(self) -> Config:
        """Sizes: as written by `save`, else from the shapes and the `config.json` beside the file, or ValueError."""
        if SIZES in self.metadata:
            try:
                return Config(**json.loads(self.metadata[SIZES]))
            except TypeError as error:
                raise ValueError(f"{self.path} comes from another version of krea-model: {error}") from error
        try:
            config = infer_config(self.shapes)
        except KeyError as missing:
            raise ValueError(f"{self.path} has no {missing}{_likely(self)}") from missing
        beside = next(iter(self._where.values()))[0].with_name("config.json")
        return confirm_config(config, beside) if beside.is_file() else config

    def _add(self, file: Path, key: str, shape: tuple[int, ...]) -> None:
        name = key
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        name = to_original(name)
        if name in UNUSED:
            return
        if name in self._where:
            raise ValueError(f"{self.path} holds {name} twice, as {self._where[name][1]} and as {key}")
        if name.startswith("blocks.") and name.endswith(".mod.lin"):
            shape = (math.prod(shape),)  # diffusers has 6 rows
        if name == "txtfusion.projector.weight" and len(shape) == 1:
            shape = (1, *shape)  # squeezed in files that went through GGUF
        self._where[name], self.shapes[name] = (file, key), shape


def load(
    path: str | Path,
    *,
    config: Config | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> MMDiT:
    """The model of a checkpoint, strictly loaded; at no time is more than one tensor held twice.

    dtype: of the parameters (the norms stay fp32, as in diffusers); None keeps what is stored.
    config: sizes, if neither the shapes nor the files beside them tell.
    """
    checkpoint = Checkpoint(path)
    config = config or checkpoint.config()
    with torch.device("meta"):
        model = MMDiT(config)
    _check_fit(str(path), checkpoint.shapes, model)
    state = {}
    for name in checkpoint:
        kept = torch.float32 if name.endswith(".scale") and dtype is not None else dtype
        state[name] = checkpoint[name].to(device=device, dtype=kept, copy=True)  # never the map of the file
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def save(path: str | Path, state: Mapping[str, Tensor], config: Config, dtype: torch.dtype | None = None) -> None:
    """Write one file in the original layout, its sizes in the metadata; the file appears only when it is complete."""
    _check_fit("the state to save", {name: tuple(t.shape) for name, t in state.items()}, config)
    tensors = {name: t.detach().to(dtype=dtype) for name, t in state.items()}
    write_tensors(path, tensors, {"format": "pt", SIZES: json.dumps(asdict(config))})


def save_diffusers(
    folder: str | Path, state: Mapping[str, Tensor], config: Config, dtype: torch.dtype | None = None
) -> None:
    """Write a folder that diffusers' `Krea2Transformer2DModel.from_pretrained` loads; `config.json` comes last."""
    _check_fit("the state to save", {name: tuple(t.shape) for name, t in state.items()}, config)
    tensors = {}
    for name, tensor in state.items():
        rows = (6, -1) if name.endswith(".mod.lin") else tensor.shape
        tensors[to_diffusers(name)] = tensor.detach().to(dtype=dtype).reshape(rows)
    folder = Path(folder)
    write_tensors(folder / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})
    part = folder / f".config.json.{os.getpid()}.part"
    part.write_text(json.dumps(diffusers_config(config), indent=2) + "\n")
    os.replace(part, folder / "config.json")


def average(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted sum of checkpoints (or state dicts), one tensor at a time in fp32; dtypes are those of the first.

    weights: one per state, summing to 1 (they may be negative); None means equal ones.
    """
    weights = [1 / len(states)] * len(states) if weights is None else weights
    if len(weights) != len(states) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"{len(states)} states with weights {list(weights)}: give one weight each, summing to 1")
    for other in states[1:]:
        odd = sorted(set(states[0]) ^ set(other))
        if odd:
            raise ValueError(
                f"the states to average differ in {len(odd)} names, first {odd[0]}; average like with like"
            )
    return {name: _mean([state[name] for state in states], weights) for name in states[0]}


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name and rename it: never half a file under the real name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({name: _own(t) for name, t in tensors.items()}, part, dict(metadata))
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _own(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is a part of another: safetensors writes no views."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.contiguous() if whole else tensor.clone(memory_format=torch.contiguous_format)


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros(tensors[0].shape)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.float().cpu(), alpha=weight)
    return total.to(tensors[0].dtype)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        inner = path / "transformer"
        if inner.is_dir():
            return _files(inner)
        found = sorted(path.glob("*.safetensors.index.json")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"{path} should hold one checkpoint but has {names}; name the file itself")
        return _files(found[0])
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a .safetensors file, its index.json, or a folder with one")
    if path.suffix != ".json":
        return [path]
    try:
        shards = [path.with_name(name) for name in sorted(set(json.loads(path.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an index of shards: it has no weight_map") from error
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(f"{path} names {len(missing)} shards that are not there, first {missing[0]}; download them")
    return shards


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or not a safetensors file ({error}); download it again") from error


def _check_fit(what: str, shapes: Mapping[str, tuple[int, ...]], model: MMDiT | Config) -> None:
    if isinstance(model, Config):
        with torch.device("meta"):
            model = MMDiT(model)
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    faults = [
        ("missing", [name for name in wanted if name not in shapes]),
        ("unknown", [name for name in shapes if name not in wanted]),
        (
            "of another shape",
            [f"{n} {shapes[n]} instead of {wanted[n]}" for n in wanted if n in shapes and shapes[n] != wanted[n]],
        ),
    ]
    said = [f"{len(names)} tensors {kind} ({', '.join(names[:3])})" for kind, names in faults if names]
    if said:
        raise ValueError(f"{what} does not fit the model: {'; '.join(said)}{_likely(shapes)}")


def _likely(names: Mapping[str, object]) -> str:
    for part, guess in LIKELY:
        if any(part in name for name in names):
            return f"; it looks like {guess}"
    return ""
