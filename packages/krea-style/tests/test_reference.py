"""Strengths, weights and mixing, and a sentence for everything that cannot be a reference."""

import pytest
import torch
from krea_style.interfaces import StyleEncoder
from krea_style.reference import Reference, Style, batch, mix, path, style
from krea_style.testing import FakeStyleEncoder, look, mask, paint

ENCODER: StyleEncoder = FakeStyleEncoder(features=8)
PICTURES = [paint(mask(i), look(i)) for i in range(4)]


def references(*strengths: float) -> list[Reference]:
    return [Reference(image=image, strength=s) for image, s in zip(PICTURES, strengths, strict=False)]


def test_strengths_add_up_and_weights_share_out() -> None:
    plain = style(references(0.8, 0.4), ENCODER)
    assert plain.scales == (0.8, 0.4)
    assert plain.counts == (2,)
    torch.testing.assert_close(plain.tokens, ENCODER(torch.stack(PICTURES[:2])))
    shared = style(references(0.8, 0.4), ENCODER, weights=[3, 1])
    assert shared.scales == pytest.approx((0.6, 0.1))


def test_a_weight_of_zero_leaves_one_reference() -> None:
    assert style(references(0.7, 0.7), ENCODER, weights=[1, 0]).scales == (0.7, 0.0)


def test_mixing_and_paths_are_linear() -> None:
    warm, cold = (style([reference], ENCODER) for reference in references(1.0, 0.5))
    half = mix([warm, cold], [1, 1])
    assert half.scales == (0.5, 0.25)
    assert half.counts == (2,)
    steps = path(warm, cold)
    assert len(steps) == 9
    assert steps[0].scales == (1.0, 0.0)
    assert steps[2].scales == (0.75, 0.125)
    assert steps[8].scales == (0.0, 0.5)
    with pytest.raises(ValueError, match="at least 2"):
        path(warm, cold, 1)
    with pytest.raises(ValueError, match="several images"):
        mix([batch([warm, cold]), warm], [1, 1])


def test_batches_keep_whose_reference_is_whose() -> None:
    both = batch([style(references(1.0), ENCODER), style(references(0.5, 0.25), ENCODER)])
    assert both.counts == (1, 2)
    assert both.scales == (1.0, 0.5, 0.25)
    assert both.repeat(2).counts == (1, 2, 1, 2)
    assert both.scaled(-2).scales == (-2.0, -1.0, -0.5)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.zeros(4, 16, 16), "transparent"),
        (torch.zeros(2, 3, 16, 16), "one frame of an animation"),
        (torch.rand(3, 7, 16), "shows no style"),
        (torch.zeros(3, 16, 16), "one single colour"),
        (torch.full((3, 16, 16), float("nan")), "scale them"),
        (255 * torch.rand(3, 16, 16), "scale them to -1 to 1"),
    ],
)
def test_what_is_no_reference(image: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Reference(image=image)


def test_a_flat_picture_of_two_channel_values_is_still_blank() -> None:
    image = torch.tensor([0.1, 0.5, -0.3])[:, None, None].expand(3, 16, 16)
    with pytest.raises(ValueError, match="one single colour"):
        Reference(image=image)


@pytest.mark.parametrize("strength", [-2.1, 2.5, float("nan")])
def test_strengths_have_a_range(strength: float) -> None:
    with pytest.raises(ValueError, match="outside -2 to 2"):
        Reference(image=PICTURES[0], strength=strength)


def test_how_many_and_how_much() -> None:
    with pytest.raises(ValueError, match="0 references; give 1 to 10"):
        style([], ENCODER)
    with pytest.raises(ValueError, match="11 references"):
        style([Reference(image=PICTURES[0])] * 11, ENCODER)
    ten = [Reference(image=PICTURES[0], strength=2.0)] * 10
    with pytest.raises(ValueError, match="strength 20 together exceed 4"):
        style(ten, ENCODER)
    assert sum(style(ten, ENCODER, weights=[1] * 10).scales) == pytest.approx(2.0)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("inf")], [float("nan"), 1]])
def test_wrong_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 0 each"):
        style(references(0.5, 0.5), ENCODER, weights=weights)


def test_a_style_that_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="do not fit the counts"):
        Style(torch.zeros(2, 3, 4), (1.0,), (2,))
    with pytest.raises(ValueError, match="encoder returned"):
        style(references(1.0), lambda images: torch.full((1, 2, 3), float("nan")))
