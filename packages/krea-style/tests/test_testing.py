"""The toy pictures have the factors they claim."""

import torch
from krea_style.interfaces import StyleEncoder
from krea_style.testing import PLACES, FakeStyleEncoder, look, mask, paint, two_styles


def test_two_styles_say_the_place_and_hide_the_style() -> None:
    batch = two_styles(64, seed=1)
    assert batch.images.dtype == torch.uint8
    kinds = torch.tensor([int(name[-1]) for name in batch.ids])
    warm = (batch.images[:, 0].float() - batch.images[:, 2].float()).mean((1, 2))
    assert torch.equal(warm > 0, kinds == 0)
    assert {text["short"] for text in batch.captions} == set(PLACES)
    for kind in (0, 1):
        assert len({text["short"] for text, k in zip(batch.captions, kinds.tolist(), strict=True) if k == kind}) == 4
    again = two_styles(64, seed=1)
    assert torch.equal(batch.images, again.images)
    assert batch.ids == again.ids


def test_masks_and_looks_vary() -> None:
    masks = torch.stack([mask(i) for i in range(20)])
    assert 0.4 < masks.mean() < 0.6
    assert masks.std(0).mean() > 0.3
    assert len({look(i) for i in range(20)}) == 20


def test_fake_encoder_hears_the_look() -> None:
    encoder: StyleEncoder = FakeStyleEncoder(8)
    same = encoder(torch.stack([paint(mask(i), look(0)) for i in range(8)]))
    other = encoder(torch.stack([paint(mask(0), look(i)) for i in range(8)]))
    assert same.shape == (8, 2, 8)
    assert same.std(0).mean() < 0.3 * other.std(0).mean()
