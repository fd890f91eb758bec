"""Open a model in whatever form it comes: bundle, diffusers pipeline folder, checkpoint file, or id of the hub."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from krea_model import bundle, offload, weights
from krea_model.configs import Config
from krea_model.damage import read_object
from krea_model.devices import place as device_named
from krea_model.identity import content_hash
from krea_model.inputs import check_dtype
from krea_model.mmdit import MMDiT
from krea_model.pipeline import Defaults, Pipeline, memory_explained
from krea_model.plain import is_whole
from krea_model.presets import Preset, raw, turbo
from krea_model.presets import preset as preset_named
from krea_model.quantise import Kind, as_kind
from krea_model.quantise import quantise as quantise_model

__all__ = ["Blocks", "load"]

Blocks = Literal["device", "memory", "disk"]

SIDE_PX = 1024  # of the released checkpoints
KINDS = (".safetensors", ".json", ".txt")


def load(
    path: str | Path,
    *,
    encoder: str | Path | None = None,
    autoencoder: str | Path | None = None,
    preset: str | Preset | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quantise: Kind | None = None,
    blocks: Blocks = "device",
) -> Pipeline:
    """A model that draws.

    path: a bundle folder; a diffusers pipeline folder; an id of the hub such as "krea/Krea-2-Turbo"; or a checkpoint
        (original file, transformer folder) together with `encoder` and `autoencoder`, folders of the other two parts.
        Those two also replace the parts of a pipeline folder.
    preset: how to sample unless told otherwise. None: Turbo if the folder says that it is distilled or the checkpoint
        is called so (`turbo.safetensors`), else Raw; a bundle says itself.
    dtype: of transformer and text encoder. None: as stored, the encoder in bfloat16, a bundle in fp32. The
        autoencoder stays in fp32.
    quantise: "int8" or "fp8" weights in the blocks (`quantise`). blocks: where they wait between their turns, on the
        device, in "memory" or in the file on the "disk" (`offload`): the lower, the less memory and the slower.
    ValueError if it is none of these or damaged, or the device is not there; OSError without network, MemoryError if
    it does not fit.
    """
    kind = None if quantise is None else as_kind(quantise)
    if blocks not in ("device", "memory", "disk"):
        raise ValueError(f'blocks of the model may wait on the "device", in "memory" or on "disk", not {blocks!r}')
    check_dtype(dtype)
    device, usual = device_named(device), None if preset is None else _preset(preset)
    place, name = _place(path)
    with memory_explained("this model"):
        if (place / "manifest.json").is_file():
            found = bundle.load(place, str(device), dtype=dtype or torch.float32)
            if kind is not None:
                quantise_model(found.model, kind)
            if blocks != "device":  # a bundle is small: from memory is as good as from disk
                offload.from_memory(found.model, device)
        else:
            transformer = partial(_transformer, place, dtype=dtype, device=device, quantise=kind, blocks=blocks)
            found = _released(place, encoder, autoencoder, dtype, device, transformer)
    if name is not None:
        found = replace(found, about={**found.about, "name": name})
    return found if usual is None else found.with_preset(usual)


def _preset(chosen: str | Preset) -> Preset:
    return chosen if isinstance(chosen, Preset) else preset_named(chosen)


def _place(path: str | Path) -> tuple[Path, str | None]:
    """Where the model lies, and its id if it came from the hub."""
    place = Path(path)
    if place.exists() or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(path)) or place.suffix == ".safetensors":
        return place, None
    from krea_model import hub  # needs an extra

    return hub.fetch(str(path)), str(path)


def _released(
    place: Path,
    encoder: str | Path | None,
    autoencoder: str | Path | None,
    dtype: torch.dtype | None,
    device: torch.device,
    transformer: Callable[[Config], MMDiT],
) -> Pipeline:
    _check_whole(place, encoder is not None and autoencoder is not None)
    from krea_model import autoencoder as autoencoders  # these two need extras
    from krea_model import text

    words, pictures, index = Path(encoder or place), Path(autoencoder or place), place / "model_index.json"
    usual, stated = _usual(place), _stated(index)
    with _quiet():  # the small parts first: what is missing shows before the long wait
        decode = autoencoders.load(pictures, torch.float32, str(device))
        taps = stated.get("text_encoder_select_layers")
        encode = text.load(words, dtype or torch.bfloat16, str(device), taps=taps)
    config = weights.Checkpoint(place).config()
    patch = _patch(stated, config, index)
    config = replace(config, patch=patch, channels=config.token_features // patch**2)
    asked = (decode.channels, len(encode.taps), encode.model.config.get_text_config().hidden_size)
    if asked != (config.channels, config.txtlayers, config.txtdim):
        raise ValueError(
            f"the parts do not fit: {place} takes {config.channels} latent channels and {config.txtlayers} text layers "
            f"of width {config.txtdim}, the other parts give {asked[0]}, {asked[1]} and {asked[2]}; name those it was "
            "trained with"
        )
    model = transformer(config)
    files = [*_files(place, "model", "transformer"), *_files(pictures, "vae", "vae")]
    files += [*_files(words, "text", "text_encoder", "tokenizer"), *([("index", index)] if index.is_file() else [])]
    return Pipeline(
        model=model,
        text=encode,
        autoencoder=decode,
        defaults=Defaults(side_px=SIDE_PX, steps=usual.steps, guidance=usual.guidance, mu=usual.mu),
        about={"name": place.resolve().name},
        sha256=content_hash(files),
    )


def _patch(stated: Mapping[str, Any], config: Config, index: Path) -> int:
    """Pixels of a latent along one side of a token, which shapes do not tell."""
    patch = stated.get("patch_size")
    patch = config.patch if patch is None else patch
    if not is_whole(patch, 1) or config.token_features % patch**2:
        raise ValueError(
            f"{index} says patch_size = {patch!r}; it must be a whole number whose square divides the "
            f"{config.token_features} features of a token, 2 in the released model"
        )
    return patch


def _check_whole(place: Path, parts_given: bool) -> None:
    whole = (place / "transformer").is_dir()
    if not place.exists() or (place.is_dir() and not whole and not any(place.glob("*.safetensors*"))):
        raise ValueError(
            f"{place} is no model folder: it has neither a manifest.json (bundle) nor a transformer (diffusers); "
            "name one that has, a .safetensors file, or an id of the hub such as krea/Krea-2-Turbo"
        )
    if not whole and not parts_given:
        weights.Checkpoint(place).config()  # says what it is, where it is no transformer
        raise ValueError(
            f"{place} is a transformer alone; name the folders of its text encoder (Qwen3-VL-4B) and of its "
            "autoencoder (Qwen-Image) as well, or use a diffusers pipeline folder, which has all three"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers, which would mix with those of whoever called."""
    from transformers.utils import logging as bars  # there, once the encoder is

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _transformer(
    place: Path,
    config: Config,
    *,
    dtype: torch.dtype | None,
    device: str | torch.device,
    quantise: Kind | None,
    blocks: Blocks,
) -> MMDiT:
    if blocks == "disk":
        return offload.from_disk(place, config=config, dtype=dtype, device=device, quantise=quantise)
    at_first = "cpu" if blocks == "memory" else device
    model = weights.load(place, config=config, dtype=dtype, device=at_first, quantise=quantise)
    if blocks == "memory":
        offload.from_memory(model, device)
    return model


def _stated(index: Path) -> dict[str, Any]:
    """What the index of a pipeline folder says, empty without one."""
    return read_object(index) if index.is_file() else {}


def _usual(place: Path) -> Preset:
    index = place / "model_index.json"
    if index.is_file():
        distilled = _stated(index).get("is_distilled")
        if distilled not in (None, False, True):
            raise ValueError(f"{index} says is_distilled = {distilled!r}; it must be true or false")
        return turbo() if distilled else raw()
    name = place.resolve().parent.name if place.name == "transformer" else place.name
    return turbo() if "turbo" in name.lower() else raw()


def _files(place: Path, part: str, *folders: str) -> Iterator[tuple[str, Path]]:
    """The files of one part of a model, under names that do not depend on where it lies."""
    if place.is_file():
        yield part, place
        return
    inside = [place / name for name in folders if (place / name).is_dir()]
    for folder in inside or [place]:
        for file in folder.iterdir():
            if file.suffix in KINDS and file.is_file():
                yield f"{folder.name if inside else part}/{file.name}", file
