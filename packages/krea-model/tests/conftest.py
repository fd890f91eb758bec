"""The same model in diffusers, random cases, and how figures of a comparison are kept."""

import random
from collections.abc import Callable

import pytest
import torch
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from krea_model.configs import Config
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


@pytest.fixture(scope="session")
def together() -> Callable[..., Tensor]:
    """A function: diffusers' velocity `s f` of padded states `b l k f` with a mask `b l`; the images share one grid."""

    def run(
        model: Krea2Transformer2DModel,
        x: Tensor,
        t: Tensor,
        states: Tensor,
        mask: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        ids = positions(states.shape[1], grid)
        images = x.unflatten(0, (len(states), -1))
        return model(images, states, t, ids, mask, return_dict=False)[0].flatten(0, 1)

    return run


@pytest.fixture(scope="session")
def drawn() -> Callable[[int], tuple[Config, list[int], list[tuple[int, int]]]]:
    """A function: seed -> a random configuration, prompt lengths and grids; every third seed has equal samples."""

    def draw(seed: int) -> tuple[Config, list[int], list[tuple[int, int]]]:
        rng = random.Random(seed)
        head, kvheads, txtkvheads = rng.choice([16, 20, 32]), rng.choice([1, 2, 3]), rng.choice([1, 2])
        heads, txtheads = kvheads * rng.choice([1, 2, 4]), txtkvheads * rng.choice([1, 2])
        config = Config(
            features=head * heads,
            layers=rng.choice([1, 2, 3]),
            heads=heads,
            kvheads=kvheads,
            txtdim=16 * txtheads,
            txtlayers=rng.choice([1, 2, 5, 12]),
            txtheads=txtheads,
            txtkvheads=txtkvheads,
            channels=rng.choice([1, 4, 16]),
            patch=rng.choice([1, 2]),
            multiplier=rng.choice([1, 4]),
            tdim=rng.choice([8, 32]),
            theta=rng.choice([1000.0, 10.0]),
        )
        count = rng.choice([1, 2, 4])
        lengths = [rng.choice([1, 2, 7, 64, 512, rng.randint(3, 511)]) for _ in range(count)]
        grids = [(rng.randint(1, 6), rng.randint(1, 6)) for _ in range(count)]
        if seed % 3 == 0:  # all alike: the path without gathering
            lengths, grids = [lengths[0]] * count, [grids[0]] * count
        return config, lengths, grids

    return draw


@pytest.fixture(scope="session")
def inputs() -> Callable[..., tuple[Tensor, Tensor, Conditioning, Grids]]:
    """A function: sizes and a seed -> image tokens, times, text states and the grids, as the model takes them."""

    def make(config: Config, lengths: list[int], grids: Grids, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(sum(h * w for h, w in grids), config.token_features, generator=generator)
        states = torch.randn(sum(lengths), config.txtlayers, config.txtdim, generator=generator)
        t = torch.rand(len(grids), generator=generator)
        return x, t, Conditioning(states, tuple(lengths)), grids

    return make


@pytest.fixture
def within(request: pytest.FixtureRequest) -> Callable[[str, float | Tensor, float], None]:
    """A function: fail if a figure is above its bar (or no number), and keep it for `--junitxml` (docs/parity.md)."""

    def check(name: str, figure: float | Tensor, bar: float) -> None:
        request.node.user_properties.append((name, float(figure)))
        assert float(figure) <= bar, f"{name}: {float(figure):.2e} is above {bar:.0e}"

    return check
