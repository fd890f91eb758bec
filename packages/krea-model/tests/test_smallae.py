"""The small autoencoder learns, and its latents are normalised."""

import pytest
import torch
from krea_model.smallae import Sizes, SmallAutoencoder, reconstruction_error


def test_it_learns_and_normalises() -> None:
    torch.manual_seed(0)
    model = SmallAutoencoder(Sizes(channels=6, width=16, depth=1))
    images = torch.rand(16, 3, 16, 16).round() * 2 - 1
    images = images.repeat_interleave(4, -1)[..., :16]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(120):
        loss = reconstruction_error(model(images), images)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    model.eval()
    latents = model.encode(images)
    assert latents.shape == (16, 6, 4, 4)
    assert latents.std().item() == pytest.approx(1, abs=0.2)
    assert model.decode(latents).abs().max() <= 1


def test_sides_must_be_multiples_of_four() -> None:
    with pytest.raises(ValueError, match="18x16 pixels; sides must be multiples of 4"):
        SmallAutoencoder(Sizes(width=8)).encode(torch.zeros(1, 3, 16, 18))
    with pytest.raises(ValueError, match="each must be at least 1"):
        Sizes(width=0)


def test_error_is_zero_for_equal_pictures_and_counts_edges() -> None:
    flat, edge = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    assert reconstruction_error(edge, edge) == 0
    even = torch.full_like(edge, 0.5)
    assert reconstruction_error(even, edge) > reconstruction_error(flat + 0.5, flat)
