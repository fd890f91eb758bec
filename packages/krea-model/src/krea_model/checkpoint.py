"""Checkpoints in every layout in circulation, read tensor by tensor under the original names and shapes.

Names: `names`; sizes: `sizes`; the model of a checkpoint: `weights`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from krea_model.configs import Config
from krea_model.mmdit import MMDiT
from krea_model.names import to_original
from krea_model.quantise import Kind, as_kind, prepare
from krea_model.sizes import confirm_config, infer_config
from krea_model.tensorfiles import DTYPES, open_tensors

__all__ = ["Checkpoint", "check_fit", "dtypes_of", "metadata_of", "shapes_of"]

SIZES = "krea_model.config"  # keys in the metadata of files that `weights.save` writes
QUANTISED = "krea_model.quantised"
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
UNUSED = ("last.up.weight", "last.down.weight")  # in some repacked files; no code of the model reads them
LIKELY = (
    ("lora_", "a LoRA; read it with krea_model.lora_files.read"),
    ("lokr_", "a LoKr adapter, which is not supported"),
    ("weight_scale", "a checkpoint that another program quantised; use the bf16 file"),
    ("scale_weight", "a checkpoint that another program quantised; use the bf16 file"),
    ("comfy_quant", "a checkpoint that another program quantised; use the bf16 file"),
    ("first_stage_model.", "a Stable Diffusion or SDXL model"),
    ("input_blocks.", "a Stable Diffusion or SDXL model"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("double_blocks.", "a FLUX model"),
    ("double_stream_modulation", "a FLUX.2 model"),
    ("single_transformer_blocks.", "a FLUX model"),
    ("img_mlp.", "a Qwen-Image model"),
    ("noise_refiner.", "a Lumina or Z-Image model"),
    ("adaln_single.", "a PixArt, Sana or LTX model"),
    ("time_projection.", "a Wan model"),
    ("model.layers.", "a language model"),
    ("language_model.", "a language model"),
    ("decoder.", "an autoencoder"),
    ("txtfusion.", "a Krea 2 model of another size, or an incomplete one"),
    ("text_fusion.", "a Krea 2 model of another size, or an incomplete one"),
    ("wq.", "a part of a Krea 2 model"),
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
        self.dtypes: dict[str, torch.dtype] = {}
        self._where: dict[str, tuple[Path, str]] = {}
        for file in _files(self.path):
            with open_tensors(file) as tensors:
                self.metadata |= tensors.metadata() or {}
                for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                    part = tensors.get_slice(key)
                    self._add(file, key, tuple(part.get_shape()), str(part.get_dtype()))

    def __getitem__(self, name: str) -> Tensor:
        file, key = self._where[name]
        with open_tensors(file) as tensors:  # opened anew each time: an open map would keep its pages resident
            return tensors.get_tensor(key).reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    @property
    def quantised(self) -> Kind | None:
        """How its block layers are stored, as `weights.save` noted it."""
        stated = self.metadata.get(QUANTISED)
        return None if stated is None else as_kind(stated)

    def config(self) -> Config:
        """Sizes: as written by `save`, else from the shapes and the `config.json` beside the file, or ValueError."""
        if SIZES in self.metadata:
            try:
                return Config(**json.loads(self.metadata[SIZES]))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.path} is damaged or comes from another version of krea-model: the sizes that it states are "
                    f"none ({error})"
                ) from error
        try:
            config = infer_config(self.shapes)
        except KeyError as missing:
            raise ValueError(f"{self.path} has no {missing}{_first(self)}{_likely(self)}") from missing
        except ValueError as odd:
            raise ValueError(f"{self.path} is no Krea 2 model that can be built: {odd}") from odd
        beside = next(iter(self._where.values()))[0].with_name("config.json")
        return confirm_config(config, beside) if beside.is_file() else config

    def _add(self, file: Path, key: str, shape: tuple[int, ...], dtype: str) -> None:
        name = key
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        name = to_original(name)
        if name in UNUSED:
            return
        if name in self._where:
            raise ValueError(f"{self.path} holds {name} twice, as {self._where[name][1]} and as {key}")
        if dtype not in DTYPES:
            raise ValueError(f"{self.path} holds {key} as {dtype}, which is not read; use the bf16 file")
        if name.startswith("blocks.") and name.endswith(".mod.lin") and len(shape) == 2 and shape[0] == 6:
            shape = (math.prod(shape),)  # of diffusers
        if name == "txtfusion.projector.weight" and len(shape) == 1:
            shape = (1, *shape)  # squeezed in files that went through GGUF
        self._where[name], self.shapes[name], self.dtypes[name] = (file, key), shape, DTYPES[dtype]


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of a state, without reading its tensors if it is a checkpoint; ValueError for what is no state."""
    if not isinstance(state, Mapping) or not (
        isinstance(state, Checkpoint) or all(map(torch.is_tensor, state.values()))
    ):
        raise ValueError(
            f"a state of type {type(state).__name__}; give tensors by name: model.state_dict() or a Checkpoint"
        )
    return dict(state.shapes) if isinstance(state, Checkpoint) else {n: tuple(t.shape) for n, t in state.items()}


def dtypes_of(state: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Types of a state, without reading its tensors if it is a checkpoint."""
    return dict(state.dtypes) if isinstance(state, Checkpoint) else {n: t.dtype for n, t in state.items()}


def metadata_of(config: Config, kind: Kind | None) -> dict[str, str]:
    """What our files say about themselves."""
    about = {"format": "pt", SIZES: json.dumps(asdict(config))}
    return about if kind is None else about | {QUANTISED: kind}


def check_fit(what: str, shapes: Mapping[str, tuple[int, ...]], config: Config, kind: Kind | None = None) -> None:
    """ValueError if tensors of these shapes are not exactly those of the model; it names the first wrong ones."""
    with torch.device("meta"):
        model = MMDiT(config)
    if kind is not None:
        prepare(model, kind)
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    faults = [
        ("missing", [name for name in wanted if name not in shapes]),
        ("unknown", [name for name in shapes if name not in wanted]),
        (
            "of another shape",
            [f"{n} {shapes[n]} instead of {wanted[n]}" for n in wanted if n in shapes and shapes[n] != wanted[n]],
        ),
    ]
    said = [f"{len(names)} tensors {fault} ({', '.join(names[:3])})" for fault, names in faults if names]
    if said:
        raise ValueError(f"{what} does not fit the model: {'; '.join(said)}{_likely(shapes)}")


def _first(names: Mapping[str, object]) -> str:
    shown = ", ".join(list(names)[:3])
    return f"; it has {shown}{', ...' if len(names) > 3 else ''}" if shown else "; it holds no tensors at all"


def _likely(names: Mapping[str, object]) -> str:
    for part, guess in LIKELY:
        if any(part in name for name in names):
            return f"; it looks like {guess}"
    return ""


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
    return _shards(path) if path.suffix == ".json" else [path]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        shards = [index.with_name(name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards: it has no weight_map") from error
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(f"{index} names {len(missing)} shards that are not there, first {missing[0]}; download them")
    return shards
