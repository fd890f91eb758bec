"""Pictures to a trained model and back to a picture, through packages that do not know each other."""

from pathlib import Path

import pytest
import torch
from krea_data.loader import Batches
from krea_data.memory import MemoryTable
from krea_data.shards import export
from krea_data.tasks import Caption, Decode, Flat
from krea_data.testing import MemoryBlobs, rows
from krea_data.worker import run
from krea_infra.telemetry import json_lines, read_json_lines
from krea_model.mmdit import MMDiT
from krea_model.packing import pack, unpack
from krea_model.sampling import noise, sample
from krea_model.testing import FakeAutoencoder, FakeTextEncoder, tiny_model
from krea_train.interfaces import Batch
from krea_train.loop import Settings, fit
from krea_train.objectives.flow import FlowMatching
from krea_train.optim import AdamW, Optimizer

vae = FakeAutoencoder()
text = FakeTextEncoder()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small pictures, curated in memory and exported."""
    blobs = MemoryBlobs()
    table = MemoryTable(rows(12, blobs))
    run(table, [Decode(blobs=blobs), Flat(blobs=blobs), Caption(blobs=blobs)], worker="here")
    return export(table.scan(kept_by=["caption"]), blobs, tmp_path_factory.mktemp("data") / "shards")


def latents(batch: Batch, step: int) -> torch.Tensor:
    return vae.encode(batch.images.float() / 127.5 - 1)


def train(shards: Path, folder: Path, *ends: int) -> MMDiT:
    """Train a tiny model in as many runs as there are ends, each in the place of a new process."""
    model = tiny_model()
    for end in ends:
        model = tiny_model()
        fit(
            model,
            Batches(shards, 4, seed=1, side_px=16),
            FlowMatching(latents=latents, text=text, seed=1),
            Optimizer(model, AdamW(lr=2e-3)),
            Settings(steps=end, log_every=1, folder=folder / "checkpoints"),
            log=json_lines(folder / "log.jsonl"),
        )
    return model


def test_curated_pictures_train_a_model_that_draws(shards: Path, tmp_path: Path) -> None:
    model = train(shards, tmp_path, 40).eval()
    losses = [row["loss"] for row in read_json_lines(tmp_path / "log.jsonl")]
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])

    cond = text(["thing 3, flat style", "thing 4"])
    grids = [(2, 2), (2, 3)]
    start = noise([1, 2], grids, model.config.token_features)
    tokens = sample(model, start, cond, grids, steps=4, mu=0.5)
    pictures = [vae.decode(z[None])[0] for z in unpack(tokens, grids)]
    assert [tuple(picture.shape) for picture in pictures] == [(3, 16, 16), (3, 16, 24)]
    assert all(picture.abs().max() <= 1 and picture.std() > 0.01 for picture in pictures)
    assert pack([vae.encode(picture[None])[0] for picture in pictures])[1] == grids


def test_a_run_that_was_interrupted_equals_one_that_was_not(shards: Path, tmp_path: Path) -> None:
    """The loader's position is part of the trainer's checkpoint, though neither package knows the other."""
    whole = train(shards, tmp_path / "whole", 6)
    parts = train(shards, tmp_path / "parts", 2, 6)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    assert [row["step"] for row in read_json_lines(tmp_path / "parts/log.jsonl")] == [1, 2, 3, 4, 5, 6]
