"""Tokens from features: which, not where; and only the resampler learns."""

import pytest
import torch
from krea_style.encoder import ImageStyleEncoder, Resampler, StyleConfig
from krea_style.features import WIDTHS, scattering
from krea_style.interfaces import StyleEncoder
from krea_style.testing import look, mask, paint

CONFIG = StyleConfig(levels=WIDTHS, tokens=3, features=16, width=16, heads=2, layers=2)


def encoder() -> ImageStyleEncoder:
    torch.manual_seed(0)
    return ImageStyleEncoder(scattering, Resampler(CONFIG))


def test_tokens_of_pictures_of_any_size() -> None:
    one: StyleEncoder = encoder()
    for side in (16, 48, 200):
        assert one(torch.stack([paint(mask(i, side), look(i)) for i in range(2)])).shape == (2, 3, 16)


def test_places_do_not_matter() -> None:
    resampler = encoder().resampler
    features = scattering(torch.stack([paint(mask(i), look(i)) for i in range(2)]))
    orders = [torch.randperm(d.shape[1], generator=torch.Generator().manual_seed(i)) for i, d in enumerate(features)]
    moved = [depth[:, order] for depth, order in zip(features, orders, strict=True)]
    torch.testing.assert_close(resampler(moved), resampler(features), atol=1e-5, rtol=0)


def test_other_styles_have_other_tokens() -> None:
    found = encoder()(torch.stack([paint(mask(0), look(0)), paint(mask(0), look(1))]))
    assert (found[0] - found[1]).abs().max() > 0.1


def test_features_are_not_trained() -> None:
    weight = torch.ones(1, requires_grad=True)
    one = ImageStyleEncoder(lambda images: [depth * weight for depth in scattering(images)], encoder().resampler)
    one(paint(mask(0), look(0))[None]).square().sum().backward()
    assert weight.grad is None
    assert all(p.grad is not None for p in one.resampler.parameters())


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="built for"):
        encoder().resampler([torch.zeros(1, 4, 5)])


@pytest.mark.parametrize("wrong", [{"levels": ()}, {"levels": (3,), "features": 30}, {"levels": (3,), "tokens": 0}])
def test_wrong_sizes_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"at least 1|do not divide"):
        StyleConfig(**wrong)
