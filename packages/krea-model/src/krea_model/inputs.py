"""What callers may pass: checks that cost nothing beside a forward pass, each with one sentence for a wrong value.

Of tensors only shapes and types are looked at, so nothing waits for a device.
"""

import operator
from collections.abc import Sequence
from numbers import Integral
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from krea_model.configs import Config
from krea_model.interfaces import Conditioning, Grids
from krea_model.plain import is_number, is_whole

__all__ = [
    "check_batch",
    "check_dtype",
    "check_prompts",
    "check_states",
    "check_text",
    "finite",
    "seed_list",
    "token_counts",
]

MOST_SEED = 2**64 - 1  # of torch's generators


def check_batch(
    config: Config, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids, text: Tensor | None = None
) -> None:
    """ValueError unless image tokens, times, text states and grids are one batch for a model of these sizes.

    text: the result of the text stage, whose input is then not looked at; without it see `check_states`.
    """
    sizes = token_counts(grids)
    if not isinstance(cond, Conditioning) or len(cond.lengths) != len(sizes) or not sizes:
        prompts = len(cond.lengths) if isinstance(cond, Conditioning) else type(cond).__name__
        raise ValueError(f"{len(sizes)} grids for prompts: {prompts}; give a Conditioning and one grid for each prompt")
    wanted = (sum(sizes), config.token_features)
    if not _has_shape(x, wanted) or not x.is_floating_point():
        raise ValueError(
            f"image tokens of {_shown(x)} for grids of {wanted[0]} tokens; give floats of {wanted}: the tokens of all "
            "images end to end, as `packing.pack` makes them"
        )
    if not _has_shape(t, (len(sizes),)) or not t.is_floating_point():
        raise ValueError(
            f"times of {_shown(t)} for {len(sizes)} images; give one number in [0, 1] for each, as floats of shape "
            f"({len(sizes)},): diffusers' timesteps divided by 1000"
        )
    wanted = (sum(cond.lengths), config.features)
    if text is not None and not (_has_shape(text, wanted) and text.is_floating_point()):
        raise ValueError(
            f"a text stage of {_shown(text)}; give floats of {wanted}, what the model's `text` makes of this batch"
        )


def check_states(config: Config, cond: Conditioning) -> None:
    """ValueError unless the text states have the taps and the width that a model of these sizes reads."""
    sizes = (config.txtlayers, config.txtdim)
    known = isinstance(cond, Conditioning) and isinstance(cond.states, Tensor)
    if not known or tuple(cond.states.shape[1:]) != sizes or not cond.states.is_floating_point():
        shown = _shown(cond.states) if isinstance(cond, Conditioning) else type(cond).__name__
        raise ValueError(
            f"text states of {shown}; give a Conditioning of (tokens, {sizes[0]}, {sizes[1]}), floats from the encoder "
            "and the taps that the model was trained with"
        )


def token_counts(grids: Grids) -> list[int]:
    """Tokens of each image; ValueError unless every grid is its rows and columns, two whole numbers."""
    if not isinstance(grids, Sequence):
        raise ValueError(f"grids are {_shown(grids)}; give a list of (rows, columns)")
    for grid in grids:
        sides = grid if isinstance(grid, tuple | list) else ()
        if len(sides) != 2 or not all(isinstance(side, Integral) and side >= 0 for side in sides):
            raise ValueError(f"a grid is {grid!r}; give the image's (rows, columns) of tokens, two whole numbers")
    return [rows * columns for rows, columns in grids]


def seed_list(seeds: Sequence[int], count: int) -> list[int]:
    """One seed for each of `count` pictures, as ints; ValueError for others."""
    if isinstance(seeds, str) or not hasattr(seeds, "__iter__"):
        raise ValueError(f"seeds are {seeds!r}; give a list of whole numbers, one for each picture")
    found: list[SupportsIndex] = list(seeds)
    wrong = [seed for seed in found if not is_whole(seed, 0) or operator.index(seed) > MOST_SEED]
    if wrong:
        raise ValueError(f"a seed is {wrong[0]!r}; give whole numbers from 0 to 2**64 - 1")
    if len(found) != count:
        raise ValueError(f"{len(found)} seeds for {count} pictures; give one for each")
    return [operator.index(seed) for seed in found]


def check_prompts(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """ValueError unless prompts are a list of text, at least one, and as many as there are seeds."""
    lists = not any(isinstance(given, str | bytes) or not hasattr(given, "__len__") for given in (prompts, seeds))
    if not lists or not prompts or len(prompts) != len(seeds):
        said = f"{len(prompts)} prompts and {len(seeds)} seeds" if lists else f"prompts {prompts!r} and seeds {seeds!r}"
        raise ValueError(f"{said}; give lists with one seed per prompt, at least one")
    for prompt in prompts:
        check_text(prompt, "a prompt")


def check_text(text: object, what: str) -> None:
    """ValueError unless it is text that can be written down, which half of a surrogate pair cannot."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {text!r}; give text")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{what} is {text!r}, which holds half a character; decode its bytes as UTF-8")


def finite(value: SupportsFloat, what: str, rule: str) -> float:
    """The number itself; ValueError with `rule`, which says what to give, for NaN, infinity and what is no number."""
    if not is_number(value):
        raise ValueError(f"{what} is {value!r}; {rule}")
    return float(value)


def check_dtype(dtype: torch.dtype | None) -> None:
    """ValueError unless parameters can be computed with in this type; None, as stored, is one."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        return
    raise ValueError(
        f"dtype is {dtype!r}; give torch.bfloat16, torch.float16 or torch.float32, or `quantise` for fewer bits"
    )


def _has_shape(value: object, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == shape


def _shown(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value) if isinstance(value, int | float) else f"type {type(value).__name__}"
    return f"shape {tuple(value.shape)}" + ("" if value.is_floating_point() else f" in {value.dtype}")
