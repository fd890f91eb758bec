"""Write a complete pipeline folder that diffusers' `Krea2Pipeline.from_pretrained` loads, and that we load too.

transformer/ vae/ text_encoder/ tokenizer/ scheduler/, and model_index.json, which comes last: a folder that has one is
whole. Nothing of diffusers or transformers is imported here.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from krea_model.checkpoint import Checkpoint
from krea_model.configs import Config
from krea_model.damage import read_object
from krea_model.mmdit import MMDiT
from krea_model.plain import is_whole
from krea_model.tensorfiles import write_json
from krea_model.weights import check_for_diffusers, save_diffusers

__all__ = ["Saves", "save_pipeline", "scheduler_config"]

INDEX = "model_index.json"
NAMES = ("config.json", "tokenizer_config.json")  # where a folder says of which class it is


class Saves(Protocol):
    """A model or tokenizer of diffusers or transformers."""

    def save_pretrained(self, save_directory: Any, /) -> Any: ...


def save_pipeline(
    folder: str | Path,
    model: MMDiT | Checkpoint,
    *,
    vae: Saves | str | Path,
    text_encoder: Saves | str | Path,
    tokenizer: Saves | str | Path,
    taps: Sequence[int],
    is_distilled: bool,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the pipeline; the transformer in shards of 10 GB, each tensor converted to `dtype` as it is written.

    model: a `Checkpoint` is copied tensor by tensor, so that no model is ever in memory.
    vae, text_encoder, tokenizer: objects with `save_pretrained`, or folders, which are copied.
    taps: layers of the text encoder, as many as the model has taps; is_distilled: Turbo, with its fixed shift.
    ValueError for a part that is none, or taps that do not fit; an older pipeline in the folder is written over.
    """
    if not isinstance(model, MMDiT | Checkpoint) or not isinstance(is_distilled, bool):
        raise ValueError(
            f"a pipeline of type {type(model).__name__} with is_distilled = {is_distilled!r}; give an MMDiT or a "
            "Checkpoint, and True or False"
        )
    config = model.config() if isinstance(model, Checkpoint) else model.config
    _check_taps(taps, config, _layers(text_encoder))
    folder = Path(folder)
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
    classes = {name: _class_of(name, part) for name, part in parts.items()}
    _refuse_itself(folder, parts)
    state = model if isinstance(model, Checkpoint) else model.state_dict()
    check_for_diffusers(state, config, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    save_diffusers(folder / "transformer", state, config, dtype)
    for name, part in parts.items():
        _write_part(folder / name, part)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config())
    classes |= {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    classes |= {"transformer": ["diffusers", "Krea2Transformer2DModel"]}
    about = {"is_distilled": is_distilled, "patch_size": config.patch, "text_encoder_select_layers": list(taps)}
    write_json(folder / INDEX, {"_class_name": "Krea2Pipeline", **dict(sorted((about | classes).items()))})
    return folder


def scheduler_config() -> dict[str, Any]:
    """Settings of diffusers' scheduler that give `flow`'s times: mu linear in the image tokens from 256 to 6400.

    A pipeline with `is_distilled` pins mu to 1.15 itself.
    """
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "invert_sigmas": False,
        "max_image_seq_len": 6400,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
        "use_beta_sigmas": False,
        "use_dynamic_shifting": True,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    }


def _check_taps(taps: Sequence[int], config: Config, layers: int | None) -> None:
    if not isinstance(taps, Sequence) or not all(is_whole(tap, 0) for tap in taps):
        raise ValueError(f"taps are {taps!r}; give the numbers of layers, {config.txtlayers} of them")
    if len(taps) != config.txtlayers:
        raise ValueError(f"{len(taps)} taps {tuple(taps)} for a model of {config.txtlayers}; give one layer per tap")
    if layers is not None and not 0 <= min(taps) <= max(taps) <= layers:
        raise ValueError(f"taps {tuple(taps)} of a text encoder with {layers} layers; each must lie between 0 and that")


def _class_of(name: str, part: Saves | str | Path) -> list[str]:
    """Library and class of a part, as the index of a pipeline names them."""
    if not isinstance(part, str | Path):
        if not callable(getattr(part, "save_pretrained", None)):
            raise ValueError(f"{name} is of type {type(part).__name__}; give a folder, or an object of its library")
        return [type(part).__module__.split(".")[0], type(part).__name__]
    for file in (Path(part) / one for one in NAMES):
        stated = read_object(file) if file.is_file() else {}
        if name == "tokenizer" and "tokenizer_class" in stated:
            return ["transformers", stated["tokenizer_class"]]
        if name == "vae" and "_class_name" in stated:
            return ["diffusers", stated["_class_name"]]
        if name == "text_encoder" and stated.get("architectures"):
            return ["transformers", _encoder(stated["architectures"][0])]
    raise ValueError(f"{part} is no folder of a {name}: it lacks a config that names its class; give one that has it")


def _layers(encoder: Saves | str | Path) -> int | None:
    """Decoder layers of a text encoder, None where it does not say."""
    if isinstance(encoder, str | Path):
        file = Path(encoder) / "config.json"
        stated = read_object(file) if file.is_file() else {}
        return stated.get("text_config", stated).get("num_hidden_layers")
    config: Any = getattr(encoder, "config", None)
    return getattr(getattr(config, "text_config", config), "num_hidden_layers", None)


def _encoder(architecture: str) -> str:
    """The class without a language head: that of the released text encoder's own folder has one."""
    return architecture.removesuffix("ForConditionalGeneration").removesuffix("Model") + "Model"


def _refuse_itself(folder: Path, parts: dict[str, Saves | str | Path]) -> None:
    for name, part in parts.items():
        if isinstance(part, str | Path) and (folder / name).resolve() == Path(part).resolve():
            raise ValueError(f"{part} would be written over by itself; write the pipeline to another folder")


def _write_part(target: Path, part: Saves | str | Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    if isinstance(part, str | Path):
        shutil.copytree(part, target)
    else:
        part.save_pretrained(target)
