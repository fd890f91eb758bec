"""The checkpoint that ships: small enough, says where it comes from, and draws what it is asked for."""

import pytest
from krea_model import bundle
from krea_sampler.compose import demo_model

ENDS = (slice(0, 4), slice(-4, None))


@pytest.fixture(scope="module")
def shipped() -> bundle.Bundle:
    return bundle.load(demo_model())


def test_it_is_small_and_names_its_origin(shipped: bundle.Bundle) -> None:
    assert sum(file.stat().st_size for file in demo_model().iterdir()) < 25 * 2**20
    about = shipped.manifest["about"]
    assert about["data"]
    assert about["recipe"].startswith("quickstart, preset small")
    assert len(about["commit"]) == 40
    assert len(about["concepts"]) >= 600


def test_colours_and_shapes_follow_the_prompt(shipped: bundle.Bundle) -> None:
    prompts = ["red apple, flat style", "cactus, 3D style"]
    apple, cactus = bundle.draw(shipped, prompts, [1, 1]).float()
    red, green = (image[:2, 16:48, 16:48].mean((1, 2)) for image in (apple, cactus))
    assert red[0] > red[1] + 60
    assert green[1] > green[0] + 30
    corners = [apple[:, rows, columns].mean() for rows in ENDS for columns in ENDS]
    assert min(corners) > 230  # on white
