"""The same model in diffusers, for comparisons."""

from collections.abc import Callable

import pytest
import torch
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from krea_model.interfaces import Conditioning, Grids
from krea_model.mmdit import MMDiT
from krea_model.names import to_diffusers
from krea_model.sizes import diffusers_config
from torch import Tensor


def positions(text: int, grid: tuple[int, int]) -> Tensor:
    rows, cols = grid
    ids = torch.zeros(text + rows * cols, 3)
    ids[text:, 1] = torch.arange(rows).repeat_interleave(cols)
    ids[text:, 2] = torch.arange(cols).repeat(rows)
    return ids


@pytest.fixture(scope="session")
def twin() -> Callable[[MMDiT], Krea2Transformer2DModel]:
    """A function: our model -> diffusers' model with the same weights."""

    def make(model: MMDiT) -> Krea2Transformer2DModel:
        sizes = {key: value for key, value in diffusers_config(model.config).items() if not key.startswith("_")}
        theirs = Krea2Transformer2DModel(**sizes)
        shapes = {name: p.shape for name, p in theirs.named_parameters()}
        state = {to_diffusers(name): p.detach() for name, p in model.state_dict().items()}
        theirs.load_state_dict({name: p.reshape(shapes[name]).clone() for name, p in state.items()})
        return theirs.eval()

    return make


@pytest.fixture(scope="session")
def one_by_one() -> Callable[..., Tensor]:
    """A function: diffusers' velocity of a flat batch, each sample alone, its text padded in the middle if asked."""

    def run(model: Krea2Transformer2DModel, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids, pad: int = 0):
        out = []
        texts = cond.states.split(list(cond.lengths))
        images = x.split([rows * cols for rows, cols in grids])
        for i, (text, image) in enumerate(zip(texts, images, strict=True)):
            hole = text.new_full((pad, *text.shape[1:]), 7.0)
            padded = torch.cat([text[:1], hole, text[1:]])
            mask = torch.ones(1, len(padded), dtype=torch.bool)
            mask[0, 1 : 1 + pad] = False
            ids = positions(len(padded), grids[i])
            out.append(model(image[None], padded[None], t[i : i + 1], ids, mask if pad else None, return_dict=False)[0])
        return torch.cat(out, 1)[0]

    return run
