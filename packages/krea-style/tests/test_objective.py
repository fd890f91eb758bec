"""Views keep the look and lose the content; the loss learns to use a reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from krea_model.flow import mix, velocity
from krea_model.packing import pack, per_token
from krea_model.testing import FakeAutoencoder, FakeTextEncoder, tiny_model
from krea_style.encoder import StyleConfig
from krea_style.features import WIDTHS, scattering
from krea_style.leakage import layout_similarity, palette
from krea_style.objective import Pictures, StyleObjective, Views, drops, view
from krea_style.reference import Style
from krea_style.styled import StyledMMDiT
from krea_style.testing import ToyBatch, look, mask, paint, two_styles
from torch import Tensor

CONFIG = StyleConfig(levels=WIDTHS, tokens=4, features=32, width=32, layers=1)
NONE = Views(crop=(1, 1), patches=1, flips=False, keep=1)


def latents(batch: Pictures, step: int) -> Tensor:
    return FakeAutoencoder().encode(batch.images.float() / 127.5 - 1)


def objective(**how) -> StyleObjective:
    return StyleObjective(latents=latents, text=FakeTextEncoder(), features=scattering, seed=0, **how)


PICTURES = torch.stack([paint(mask(i), look(i)) for i in range(40)])


def scrambled(views: Views) -> Tensor:
    return torch.stack([view(one, views, np.random.default_rng(i)) for i, one in enumerate(PICTURES)])


def test_a_view_without_parts_is_the_picture() -> None:
    assert torch.equal(scrambled(NONE), PICTURES)


def test_views_keep_colours_and_lose_the_layout() -> None:
    found = scrambled(Views())
    assert found.shape == PICTURES.shape
    assert found.min() >= PICTURES.min() - 1e-4
    assert found.max() <= PICTURES.max() + 1e-4
    kept = (palette(found) - palette(PICTURES)).abs().mean()
    assert kept < 0.3 * (palette(PICTURES.roll(1, 0)) - palette(PICTURES)).abs().mean()
    other = layout_similarity(PICTURES.roll(1, 0), PICTURES).mean()
    assert layout_similarity(found, PICTURES).mean() < other + 0.1


@pytest.mark.parametrize("part", [{"crop": (0.5, 0.5)}, {"patches": 4}, {"flips": True}, {"patches": 4, "keep": 0.25}])
def test_every_part_changes_the_picture(part: dict) -> None:
    found = scrambled(replace(NONE, **part))
    assert (found - PICTURES).abs().mean() > 0.05
    assert torch.equal(found, scrambled(replace(NONE, **part)))


def test_shuffled_pieces_are_the_same_pixels() -> None:
    found = scrambled(replace(NONE, patches=4, flips=True))
    torch.testing.assert_close(found.flatten(2).sort(2).values, PICTURES.flatten(2).sort(2).values)


def test_sizes_that_do_not_divide_keep_their_size() -> None:
    image = PICTURES[0, :, :45, :30]
    assert view(image, Views(patches=4), np.random.default_rng(0)).shape == (3, 45, 30)


def test_drop_shares_are_disjoint() -> None:
    found = [drops(u / 1000, 0.1, 0.2, 0.05) for u in range(1000)]
    assert found.count((True, True)) == pytest.approx(50, abs=1)
    assert found.count((True, False)) == pytest.approx(100, abs=1)
    assert found.count((False, True)) == pytest.approx(200, abs=1)


def test_loss_replays_and_follows_seed_and_step() -> None:
    torch.manual_seed(0)
    model, batch = StyledMMDiT(tiny_model(), CONFIG), two_styles(4)
    torch.nn.init.normal_(model.adapters[0].wo.weight)  # type: ignore[union-attr,arg-type]
    with torch.no_grad():
        first, again, later = (objective()(model, batch, step)[0].item() for step in (3, 3, 4))
        assert first == again != later
        assert replace(objective(), seed=1)(model, batch, 3)[0].item() != first
        no_style = objective(drop_style=1.0, drop_text=0.0, drop_both=0.0)(model, batch, 3)[0].item()
        assert no_style != first


def test_dropped_text_is_the_empty_prompt() -> None:
    seen: list[str] = []

    def text(prompts):
        seen.extend(prompts)
        return FakeTextEncoder()(prompts)

    fit = replace(objective(drop_style=0.0, drop_text=0.5, drop_both=0.0), text=text)
    fit(StyledMMDiT(tiny_model(), CONFIG), two_styles(16), 0)
    assert 2 <= seen.count("") <= 14
    assert set(seen) <= {"", "left", "right", "top", "bottom"}


@torch.no_grad()
def errors(model: StyledMMDiT, batch: ToyBatch) -> dict[str, float]:
    """Velocity error without a reference, with one of the right style, and with one of the other style."""
    kinds = [int(name[-1]) for name in batch.ids]
    image, grids = pack(latents(batch, 0))
    t = torch.linspace(0.1, 0.95, len(kinds))
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(5))
    cond = FakeTextEncoder()([text["short"] for text in batch.captions])
    tokens = model.encoder(scattering)(batch.images.float() / 127.5 - 1)
    found = {}
    for name, flip in (("none", None), ("right", 0), ("wrong", 1)):
        given = None
        if flip is not None:
            rows = [next(j for j, k in enumerate(kinds) if k == kind ^ flip and j != i) for i, kind in enumerate(kinds)]
            given = Style(tokens[rows], (1.0,) * len(kinds), (1,) * len(kinds))
        v = model(mix(image, noise, per_token(t, grids)), t, cond, grids, given)
        found[name] = (v - velocity(image, noise)).square().mean().item()
    return found


def test_a_few_steps_teach_to_tell_the_right_reference_from_the_wrong_one() -> None:
    torch.manual_seed(0)
    model = StyledMMDiT(tiny_model(), CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(40):
        loss, metrics = objective()(model, two_styles(16, seed=step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert not metrics["loss"].requires_grad
    found = errors(model, two_styles(48, seed=777))
    assert found["right"] < 0.9 * found["wrong"]
    assert found["right"] < 0.8 * found["none"]


def test_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="not a MMDiT; wrap the base"):
        objective()(tiny_model(), two_styles(2), 0)


@pytest.mark.parametrize("wrong", [{"crop": (0.0, 1.0)}, {"crop": (0.9, 0.5)}, {"patches": 0}, {"keep": 0.0}])
def test_wrong_views_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="crop must be"):
        Views(**wrong)


def test_wrong_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="add up"):
        objective(drop_style=0.9, drop_text=0.2)
