"""The frozen features say what they should, and not where."""

import math

import pytest
import torch
from krea_style.features import ANGLES, WAVELENGTHS_PX, WIDTHS, gabor, scattering
from krea_style.testing import Look, look, mask, paint


def test_shapes() -> None:
    found = scattering(torch.stack([paint(mask(i, 40), look(i)) for i in range(2)]))
    assert tuple(depth.shape[-1] for depth in found) == WIDTHS
    assert [depth.shape[:2] for depth in found] == [(2, 64), (2, 64), (2, 16)]


def test_filters_ignore_flat_colour() -> None:
    bank = gabor(ANGLES, WAVELENGTHS_PX)
    torch.testing.assert_close(bank.sum((2, 3)), torch.zeros(len(bank), 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(bank.flatten(1).norm(dim=1), torch.ones(len(bank)))


@pytest.mark.parametrize("turn", range(ANGLES))
def test_stripes_answer_at_their_own_angle(turn: int) -> None:
    grey = (0.0, 0.0, 0.0)
    stripes = Look(figure=grey, ground=grey, wavelength_px=4.0, angle=math.pi * turn / ANGLES, stripes=0.5)
    _, first, _ = scattering(paint(torch.ones(64, 64), stripes)[None])
    answers = first[0, 9:55].mean(0)[:ANGLES]
    assert int(answers.argmax()) == turn
    assert answers.max() > 3 * answers.sort().values[-2]


def test_a_brighter_picture_changes_the_colour_depth_alone() -> None:
    picture = 0.5 * paint(mask(0), look(0))[None]
    dark, light = scattering(picture), scattering(picture + 0.3)
    torch.testing.assert_close(light[0][..., :3], dark[0][..., :3] + 0.3)
    torch.testing.assert_close(light[1], dark[1], atol=1e-4, rtol=0)
