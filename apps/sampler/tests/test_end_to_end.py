"""A real, tiny bundle on disk with the demo's text encoder, drawn by the command in a process of its own."""

import subprocess
import sys
from pathlib import Path

import torch
from krea_model import bundle
from krea_model.bundle import Defaults
from krea_model.configs import Config
from krea_model.minilm import Reduction
from krea_model.mmdit import MMDiT
from krea_model.smallae import Sizes, SmallAutoencoder
from krea_model.testing import fill
from krea_sampler import picture

CONFIG = Config(features=64, layers=1, heads=2, kvheads=1, txtdim=32, txtlayers=3, txtheads=2, txtkvheads=1, channels=4)


def test_a_bundle_draws_and_repeats_in_another_process(tmp_path: Path) -> None:
    model = fill(MMDiT(CONFIG))
    assert isinstance(model, MMDiT)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(3, 384, 32, generator=generator)).Q
    folder = bundle.save(
        tmp_path / "a model",
        model=model,
        reduction=Reduction(torch.zeros(3, 384), basis, torch.ones(3)),
        autoencoder=SmallAutoencoder(Sizes(channels=4, width=8, depth=1)).eval(),
        defaults=Defaults(side_px=16, steps=2, guidance=1.0),
        about={"name": "tiny"},
    )

    def sample(*words: object) -> Path:
        command = [sys.executable, "-m", "krea_sampler", *map(str, words), "--model", folder, "--out", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    first = sample("a red apple, flat style", "--seed", 11)
    assert picture.parameters(first)["model"]["name"] == "tiny"
    assert sample("--from-png", first).read_bytes() == first.read_bytes()
