import pytest
import torch
from krea_model.interfaces import Autoencoder, TextEncoder
from krea_model.packing import pack
from krea_model.testing import FakeAutoencoder, FakeTextEncoder, fill, tiny_model


def test_the_fakes_fit_the_protocols_and_each_other():
    encoder: TextEncoder = FakeTextEncoder()
    autoencoder: Autoencoder = FakeAutoencoder()
    cond = encoder(["a red square", ""])
    assert cond.lengths == (4, 1)
    x, grids = pack(autoencoder.encode(torch.rand(2, 3, 16, 24) * 2 - 1))
    v = tiny_model()(x, torch.tensor([0.2, 0.9]), cond, grids)
    assert v.shape == x.shape
    assert v.std() > 0.1


def test_fake_text_depends_on_the_words_alone():
    encoder = FakeTextEncoder(taps=2, width=8)
    one, two = encoder(["red cat"]), encoder(["blue dog", "red cat"])
    assert torch.equal(one.states, two.states[3:])
    assert not torch.equal(one.states[0], two.states[0])
    assert one.states.shape == (3, 2, 8)


def test_fake_autoencoder_is_exact_and_orthogonal():
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = FakeAutoencoder().encode(images)
    assert latents.shape == (2, 48, 2, 3)
    assert torch.equal(FakeAutoencoder().decode(latents), images)
    assert latents.norm() == pytest.approx(images.norm().item(), rel=1e-6)
    with pytest.raises(ValueError, match="10x12"):
        FakeAutoencoder().encode(torch.zeros(1, 3, 10, 12))


def test_models_are_equal_for_equal_seeds_and_nothing_is_zero():
    first, again, other = tiny_model(1), tiny_model(1), tiny_model(2)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c), name
        assert a.abs().max() > 0, name
    assert fill(again, 2) is again
