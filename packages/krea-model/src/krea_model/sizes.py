"""Sizes of a model as its tensors show them, and as diffusers writes them down."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from krea_model.configs import Config, swiglu_width
from krea_model.damage import read_object
from krea_model.plain import is_number

__all__ = ["confirm_config", "diffusers_config", "infer_config"]

HEAD, TIMES = "blocks.0.attn.qknorm.qnorm.scale", "tmlp.0.weight"
REFINER = "txtfusion.refiner_blocks.0"


def infer_config(shapes: Mapping[str, Sequence[int]]) -> Config:
    """Sizes of a model from its tensors' shapes; KeyError names a tensor that is missing, ValueError an odd one.

    The rotary base does not show in shapes and is taken to be the released 1000; so is a patch of 2.
    """
    head, txthead = _length(shapes, HEAD), _length(shapes, f"{REFINER}.attn.qknorm.qnorm.scale")
    features, tokens = _shape(shapes, "first.weight", 2)
    txtdim, tdim = _length(shapes, "txtmlp.0.scale"), _shape(shapes, TIMES, 2)[1]
    _check_heads(shapes, HEAD, "blocks.0.attn.wk.weight", "first.weight")
    _check_heads(shapes, f"{REFINER}.attn.qknorm.qnorm.scale", f"{REFINER}.attn.wk.weight", "txtmlp.0.scale")
    patch = 2 if tokens % 4 == 0 else 1
    multipliers = {
        "multiplier": _multiplier(features, shapes, "blocks.0.mlp.up.weight"),
        "txtmultiplier": _multiplier(txtdim, shapes, f"{REFINER}.mlp.up.weight"),
    }
    try:
        return Config(
            features=features,
            layers=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
            heads=features // head,
            kvheads=_length(shapes, "blocks.0.attn.wk.weight") // head,
            txtdim=txtdim,
            txtlayers=_shape(shapes, "txtfusion.projector.weight", 2)[1],
            txtheads=txtdim // txthead,
            txtkvheads=_length(shapes, f"{REFINER}.attn.wk.weight") // txthead,
            channels=tokens // patch**2,
            patch=patch,
            tdim=tdim,
            **multipliers,
        )
    except ValueError as error:
        raise ValueError(f"{error} ({HEAD} has {head}, {TIMES} {tdim} columns)") from error


def confirm_config(config: Config, file: Path) -> Config:
    """Take the rotary base from a diffusers `config.json`; ValueError where it asks for what the model cannot be."""
    stated = read_object(file)
    theta = stated.get("rope_theta", config.theta)
    if not is_number(theta, above=0):
        raise ValueError(f"{file} says rope_theta = {theta!r}; it must be a positive number, such as 1000.0")
    config = replace(config, theta=float(theta))
    for key, value in diffusers_config(config).items():
        if stated.get(key, value) != value:
            said = f"{file} says {key} = {stated[key]!r}"
            raise ValueError(f"{said}, but the tensors and the model's rules say {value!r}")
    return config


def diffusers_config(config: Config) -> dict[str, Any]:
    """The `config.json` of diffusers for these sizes."""
    return {
        "_class_name": "Krea2Transformer2DModel",
        "in_channels": config.token_features,
        "num_layers": config.layers,
        "attention_head_dim": config.features // config.heads,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kvheads,
        "intermediate_size": config.mlp,
        "timestep_embed_dim": config.tdim,
        "text_hidden_dim": config.txtdim,
        "num_text_layers": config.txtlayers,
        "text_num_attention_heads": config.txtheads,
        "text_num_key_value_heads": config.txtkvheads,
        "text_intermediate_size": config.txtmlp,
        "num_layerwise_text_blocks": 2,
        "num_refiner_text_blocks": 2,
        "axes_dims_rope": list(config.axes),
        "rope_theta": config.theta,
        "norm_eps": 1e-5,
    }


def _shape(shapes: Mapping[str, Sequence[int]], name: str, axes: int) -> tuple[int, ...]:
    found = tuple(shapes[name])
    if len(found) != axes or not all(found):
        axis = "one axis" if axes == 1 else f"{axes} axes"
        raise ValueError(f"{name} has shape {found}; it must have {axis} and not be empty")
    return found


def _check_heads(shapes: Mapping[str, Sequence[int]], head: str, keys: str, whole: str) -> None:
    size, kvwidth, width = _length(shapes, head), _length(shapes, keys), _length(shapes, whole)
    if kvwidth % size or width % kvwidth:
        raise ValueError(
            f"{head} makes heads of {size}, {keys} has {kvwidth} rows and {whole} a width of {width}: each must divide "
            "the one after it"
        )


def _length(shapes: Mapping[str, Sequence[int]], name: str) -> int:
    return _shape(shapes, name, 1 if name.endswith(".scale") else 2)[0]


def _multiplier(width: int, shapes: Mapping[str, Sequence[int]], name: str) -> int:
    hidden = _length(shapes, name)
    for multiplier in (4, *range(1, 65)):  # several may give the same width: the released one first
        if swiglu_width(width, multiplier) == hidden:
            return multiplier
    raise ValueError(
        f"a hidden width of {hidden} ({name}) at width {width} follows from no multiplier; see configs.swiglu_width"
    )
