"""The autoencoder's objective: the same step gives the same loss, and training on it lowers the error."""

import torch
from krea_model.smallae import Sizes, SmallAutoencoder
from krea_train.loop import Settings, fit
from krea_train.objectives.reconstruct import Reconstruction
from krea_train.optim import AdamW, Optimizer
from krea_train.testing import Squares


def model() -> SmallAutoencoder:
    torch.manual_seed(0)
    return SmallAutoencoder(Sizes(channels=4, width=8, depth=1))


def test_a_step_depends_on_seed_and_step_alone() -> None:
    batch = next(iter(Squares(count=8, side_px=16)))
    losses = [
        Reconstruction(seed=seed)(model(), batch, step)[0].item() for seed, step in ((0, 3), (0, 3), (0, 4), (1, 3))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_training_raises_the_psnr() -> None:
    seen: list[float] = []
    autoencoder = model()
    fit(
        autoencoder,
        Squares(count=8, side_px=16),
        Reconstruction(seed=0),
        Optimizer(autoencoder, AdamW(lr=1e-2)),
        Settings(steps=120, log_every=20),
        log=lambda step, metrics: seen.append(metrics["psnr_db"]),
    )
    assert seen[-1] > seen[0] + 1.5
