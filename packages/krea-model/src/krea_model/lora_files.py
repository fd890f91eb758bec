"""LoRA files: read every layout that exists for Krea 2, write the two that others read.

| producer                                | keys                                                                  |
| diffusers, PEFT                         | `transformer.<diffusers layer>.lora_A.weight`, alpha in the metadata   |
| official trainer, ai-toolkit, ComfyUI   | `diffusion_model.<original layer>.lora_A.weight`, sometimes `.alpha`   |
| other PEFT exports                      | `base_model.model.<original layer>...`, alpha in `adapter_config.json` |
| musubi-tuner and other kohya programs   | `lora_unet_<original layer with _ for .>.lora_down.weight`, `.alpha`   |
| some                                    | no prefix                                                             |
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from krea_model.lora import LowRank
from krea_model.names import linears, to_diffusers
from krea_model.plain import is_number
from krea_model.tensorfiles import open_tensors
from krea_model.weights import write_tensors

__all__ = ["read", "write"]

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
FLAT = "lora_unet_"
KEY = re.compile(r"(?P<layer>.+?)\.(?:(?P<part>lora_[AB]|lora[_.](?:down|up))(?:\.[^.]+)?\.weight|(?P<alpha>alpha))")
SIDES = {"lora_A": "a", "lora_down": "a", "lora.down": "a", "lora_B": "b", "lora_up": "b", "lora.up": "b"}
OWN = "adapter_model.safetensors"  # by which PEFT calls the file of an `adapter_config.json`
METADATA = "lora_adapter_metadata"  # diffusers' name for the PEFT configuration in a file's header
LIKELY = (
    ("lokr_", "a LoKr adapter, which is not supported; train or convert to a plain LoRA"),
    ("hada_", "a LoHa adapter, which is not supported; train or convert to a plain LoRA"),
    ("dora_scale", "a DoRA, which is not supported; train or convert to a plain LoRA"),
    ("lora_magnitude_vector", "a DoRA, which is not supported; train or convert to a plain LoRA"),
    ("oft_", "an OFT adapter, which is not supported; train or convert to a plain LoRA"),
    ("to_qkv", "a LoRA on fused queries, keys and values; split them in the program that trained it"),
    ("lora_te", "a LoRA for a Stable Diffusion or SDXL model"),
    ("down_blocks", "a LoRA for a Stable Diffusion or SDXL model"),
    ("input_blocks", "a LoRA for a Stable Diffusion or SDXL model"),
    ("joint_blocks", "a LoRA for a Stable Diffusion 3 model"),
    ("double_blocks", "a LoRA for a FLUX model"),
    ("single_blocks", "a LoRA for a FLUX model"),
    ("single_transformer_blocks", "a LoRA for a FLUX model"),
    ("img_mlp", "a LoRA for a Qwen-Image model"),
    ("cross_attn", "a LoRA for a Wan model"),
    ("model.layers", "a LoRA for a language model"),
    (".diff", "a set of full differences, which is not supported; take the merged checkpoint"),
    ("wq.weight", "a checkpoint; read it with krea_model.weights.load"),
    ("to_q.weight", "a checkpoint; read it with krea_model.weights.load"),
)


def read(path: str | Path) -> dict[str, LowRank]:
    """A LoRA file, or a PEFT folder, in any known layout -> its adapters by original layer name.

    Alpha comes from the file's tensors, else its metadata or `adapter_config.json`, else it equals the rank. Beside a
    file that was named, and not by PEFT, that JSON counts only if its ranks are those of the file.
    ValueError if any key of the file is not understood: nothing is ever left out silently.
    """
    file = _file(Path(path))
    tensors = _tensors(file)
    layers = _layers(tensors)
    parts: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        layer = layers.get(match["layer"]) if match else None
        if match is None or layer is None:
            strange.append(key)
            continue
        found, side = parts.setdefault(layer, {}), SIDES.get(match["part"], "alpha")
        if side in found:
            strange.append(f"{key} (its layer has two)")
        found[side] = tensor
    strange += [f"{layer} without {side}" for layer, found in parts.items() for side in "ab" if side not in found]
    if strange or not parts:
        raise ValueError(
            f"{path} is no LoRA for Krea 2 that can be read: {len(strange)} of {len(tensors)} keys do not fit, "
            f"first {', '.join(strange[:3]) or 'none at all'}{_likely(strange)}"
        )
    stated = _stated(Path(path), file, {layer: len(found["a"]) for layer, found in parts.items() if found["a"].ndim})
    return {layer: _adapter(layer, found, stated) for layer, found in parts.items()}


def write(path: str | Path, lora: Mapping[str, LowRank], layout: Literal["original", "diffusers"] = "original") -> None:
    """Write a LoRA with its alpha: for ComfyUI and trainers ("original"), or for `load_lora_weights` ("diffusers").

    diffusers takes the second alone: it refuses alphas in tensors.
    """
    if not lora or not all(isinstance(adapter, LowRank) for adapter in lora.values()):
        raise ValueError("a LoRA without layers cannot be written; give adapters by layer, at least one")
    if layout not in ("original", "diffusers"):
        raise ValueError(f'LoRA layout "{layout}" is unknown; use "original" or "diffusers"')
    tensors: dict[str, Tensor] = {}
    metadata = {"format": "pt"}
    for name, adapter in lora.items():
        layer = f"diffusion_model.{name}" if layout == "original" else f"transformer.{to_diffusers(name)}"
        tensors[f"{layer}.lora_A.weight"] = adapter.a.detach()
        tensors[f"{layer}.lora_B.weight"] = adapter.b.detach()
        if layout == "original":
            tensors[f"{layer}.alpha"] = torch.tensor(float(adapter.alpha))
    if layout == "diffusers":
        metadata[METADATA] = json.dumps({f"transformer.{key}": value for key, value in _peft(lora).items()})
    write_tensors(path, tensors, metadata)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} safetensors files; name the LoRA file itself")
    return found[0]


def _tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"LoRA file {file} does not exist")
    with open_tensors(file) as stored:
        return {key: stored.get_tensor(key).clone() for key in stored.keys()}  # noqa: SIM118 (not a mapping)


def _likely(strange: Iterable[str]) -> str:
    for part, guess in LIKELY:
        if any(part in key for key in strange):
            return f"; it looks like {guess}"
    return "; LoRAs of other models are not supported"


def _layers(keys: Iterable[str]) -> dict[str, str]:
    """Every spelling of a layer that may stand in front of `.lora_A` -> its original name."""
    depth = 1 + max((int(n) for key in keys for n in re.findall(r"blocks[._](\d+)", key)), default=0)
    names = {}
    for name in linears(min(depth, 1000)):
        for spelling in (name, to_diffusers(name)):
            for prefix in ("", *PREFIXES, "base_model.model.diffusion_model.", "base_model.model.transformer."):
                names[prefix + spelling] = name
            names[FLAT + spelling.replace(".", "_")] = name
    return names


def _stated(path: Path, file: Path, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The PEFT configuration that came with the file, empty if none did; ranks: of the file's layers."""
    with open_tensors(file) as stored:
        metadata = stored.metadata() or {}
    beside = file.with_name("adapter_config.json")
    own = METADATA in metadata or path.is_dir() or file.name == OWN  # else it may lie there for another file
    try:
        if METADATA in metadata:
            stated = json.loads(metadata[METADATA])
            stated = {key.removeprefix("transformer."): value for key, value in stated.items()}
        else:
            stated = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
        _check_settings(stated)
        if own or all(rank == _of(layer, stated, "rank_pattern", "r") for layer, rank in ranks.items()):
            return stated
    except (ValueError, TypeError, AttributeError, re.error) as error:
        if own:
            raise ValueError(f"the PEFT settings of {file} are damaged ({error}); get the file again") from error
    return {}


def _check_settings(stated: Any) -> None:
    """ValueError, TypeError, AttributeError or re.error where `_alpha` could not use them."""
    if not isinstance(stated, dict):
        raise ValueError(f"they are a {type(stated).__name__}, no object")
    patterns = dict(stated.get("alpha_pattern") or {})
    for pattern in patterns:
        re.compile(pattern)
    for alpha in (stated.get("lora_alpha") or 1, *patterns.values()):
        if not is_number(alpha):
            raise ValueError(f"an alpha is {alpha!r}, no number")


def _adapter(layer: str, found: Mapping[str, Tensor], stated: Mapping[str, Any]) -> LowRank:
    if found["a"].ndim != 2 or found["b"].ndim != 2:
        shapes = " and ".join(str(tuple(found[side].shape)) for side in "ab")
        raise ValueError(f"{layer}: low-rank factors of shapes {shapes}; they must be (rank, in) and (out, rank)")
    if any(not one.is_floating_point() or not one.float().isfinite().all() for one in found.values()):
        raise ValueError(f"{layer}: its adapter is not finite or not of floating-point numbers; get another file")
    a, b = (one.float() if one.itemsize == 1 else one for one in (found["a"], found["b"]))  # nothing computes in fp8
    if "alpha" in found and found["alpha"].numel() != 1:
        raise ValueError(f"{layer}: alpha has {found['alpha'].numel()} values; it must be one number")
    alpha = float(found["alpha"]) if "alpha" in found else _alpha(layer, len(a), stated)
    try:
        return LowRank(a=a, b=b, alpha=alpha)
    except ValueError as error:
        raise ValueError(f"{layer}: {error}") from error


def _alpha(layer: str, rank: int, stated: Mapping[str, Any]) -> float:
    alpha = float(_of(layer, stated, "alpha_pattern", "lora_alpha") or rank)
    return alpha * rank**0.5 if stated.get("use_rslora") else alpha  # rank-stabilised: alpha / sqrt(r), 2312.03732


def _of(layer: str, stated: Mapping[str, Any], patterns: str, usual: str) -> Any:
    """A layer's own number, by the first pattern that fits as in PEFT's `get_pattern_key`, else that of all layers."""
    for pattern, value in (stated.get(patterns) or {}).items():
        if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in (layer, to_diffusers(layer))):
            return value
    return stated.get(usual)


def _peft(lora: Mapping[str, LowRank]) -> dict[str, Any]:
    """What PEFT's LoraConfig needs to give every layer its own rank and alpha."""
    rank = Counter(adapter.rank for adapter in lora.values()).most_common(1)[0][0]
    alpha = Counter(adapter.alpha for adapter in lora.values()).most_common(1)[0][0]
    names = {to_diffusers(name): adapter for name, adapter in lora.items()}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(names),
        "rank_pattern": {f"^{name}": adapter.rank for name, adapter in names.items() if adapter.rank != rank},
        "alpha_pattern": {f"^{name}": adapter.alpha for name, adapter in names.items() if adapter.alpha != alpha},
    }
