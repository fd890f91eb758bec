"""A tiny model folder that needs no text encoder: what lies in it is its seed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from krea_model import bundle
from krea_model.pipeline import Defaults, Pipeline
from krea_model.testing import FakeAutoencoder, FakeTextEncoder, tiny_model


def fake_load(path: Path, device: str = "cpu", *, dtype: torch.dtype = torch.float32) -> Pipeline:
    """Stands in for `bundle.load`: seeded random weights, words hashed into states, pixels shuffled into latents."""
    manifest = json.loads((path / "manifest.json").read_text())
    return Pipeline(
        model=tiny_model(seed=manifest["seed"]).to(device, dtype),
        text=FakeTextEncoder(),
        autoencoder=FakeAutoencoder(),
        defaults=Defaults(side_px=16, steps=3, guidance=1.0),
        about={"name": path.name},
        manifest=manifest,
        sha256=hashlib.sha256(str(manifest["seed"]).encode()).hexdigest(),
    )


@pytest.fixture
def make_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Makes the folder of a tiny model of that seed, which `krea_model.bundle.load` will then load."""
    monkeypatch.setattr(bundle, "load", fake_load)

    def make(seed: int) -> Path:
        folder = tmp_path / f"model {seed}"
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({"seed": seed, "about": {}}))
        return folder

    return make


@pytest.fixture
def model(make_model: Callable[[int], Path]) -> Path:
    """The folder of a tiny model."""
    return make_model(0)
