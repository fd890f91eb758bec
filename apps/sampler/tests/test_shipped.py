"""The checkpoint that ships: small enough, says where it comes from, and draws what it is asked for."""

import pytest
import torch
from krea_model import bundle
from krea_sampler.compose import demo_model


@pytest.fixture(scope="module")
def shipped() -> bundle.Bundle:
    return bundle.load(demo_model())


def test_it_is_small_and_names_its_origin(shipped: bundle.Bundle) -> None:
    assert sum(file.stat().st_size for file in demo_model().iterdir()) < 25 * 2**20
    about = shipped.manifest["about"]
    assert about["data"]
    assert about["recipe"].startswith("quickstart, preset ")
    assert len(about["commit"]) == 40
    assert len(about["concepts"]) >= 150


def test_colours_and_shapes_follow_the_prompt(shipped: bundle.Bundle) -> None:
    red, green = bundle.draw(shipped, ["red apple, flat style", "green apple, flat style"], [1, 1]).float()
    assert red[0, 16:48, 16:48].mean() > red[1, 16:48, 16:48].mean() + 60
    assert green[1, 16:48, 16:48].mean() > green[0, 16:48, 16:48].mean() + 20
    corners = torch.stack([red[:, :4, :4], red[:, :4, -4:], red[:, -4:, :4], red[:, -4:, -4:]])
    assert corners.mean() > 230  # on white
