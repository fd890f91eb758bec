"""A bundle draws the same after a round trip, and says what is wrong with a damaged one."""

import json
from pathlib import Path

import pytest
import torch
from krea_model import bundle
from krea_model.bundle import Defaults
from krea_model.configs import Config
from krea_model.initial import initialise
from krea_model.minilm import MiniLM, fit_reduction
from krea_model.mmdit import MMDiT
from krea_model.smallae import Sizes, SmallAutoencoder
from krea_model.testing import fill

CONFIG = Config(features=64, layers=1, heads=2, kvheads=1, txtdim=32, txtlayers=3, txtheads=2, txtkvheads=1, channels=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "a model"
    reduction = fit_reduction(MiniLM()(["red apple, flat style", "a rocket", "green frog"]).states, 32)
    autoencoder = SmallAutoencoder(Sizes(channels=4, width=8, depth=1)).eval()
    model = fill(MMDiT(CONFIG))
    assert isinstance(model, MMDiT)
    defaults = Defaults(side_px=16, steps=2, guidance=1.0)
    bundle.save(path, model=model, reduction=reduction, autoencoder=autoencoder, defaults=defaults, about={"data": "x"})
    return path


def test_pictures_depend_on_prompt_and_seed_but_not_on_the_batch(folder: Path) -> None:
    loaded = bundle.load(folder)
    both = bundle.draw(loaded, ["red apple", "a rocket"], [1, 2])
    alone = bundle.draw(loaded, ["a rocket"], [2])
    other = bundle.draw(loaded, ["red apple"], [2])
    assert both.shape == (2, 3, 16, 16)
    assert both.dtype == torch.uint8
    assert (both[1].int() - alone[0].int()).abs().max() <= 1  # a rounding of the last bit may cross a level
    assert not torch.equal(alone, other)


def test_steps_are_told(folder: Path) -> None:
    seen: list[int] = []
    bundle.draw(bundle.load(folder), ["a rocket"], [0], steps=3, on_step=lambda step, _: seen.append(step))
    assert seen == [0, 1, 2]


def test_a_changed_file_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is missing or not what the manifest says"):
        bundle.load(tmp_path)


def test_folders_that_are_no_bundle(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        bundle.load(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": "krea-bundle/9"}))
    with pytest.raises(ValueError, match="krea-bundle/9"):
        bundle.load(tmp_path)


def test_a_bundle_is_known_by_its_content_and_not_by_its_place(folder: Path, tmp_path: Path) -> None:
    loaded, moved = bundle.load(folder), tmp_path / "moved"
    moved.mkdir()
    for file in folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps(manifest | {"about": {"name": "mine"}}))
    assert bundle.load(moved).sha256 == loaded.sha256
    assert (loaded.about["name"], bundle.load(moved).about["name"]) == ("a model", "mine")
    assert loaded.manifest["about"] == {"data": "x"}
    (moved / "manifest.json").write_text(json.dumps(manifest | {"defaults": {"steps": 3}}))
    assert bundle.load(moved).sha256 != loaded.sha256


def test_bad_sides_and_seeds(folder: Path) -> None:
    loaded = bundle.load(folder)
    with pytest.raises(ValueError, match="20x20 px: sides must be multiples of 8; the nearest widths are 16 and 24"):
        bundle.draw(loaded, ["x"], [0], side_px=20)
    with pytest.raises(ValueError, match="1 prompts and 2 seeds"):
        bundle.draw(loaded, ["x"], [0, 1])


def test_a_fresh_model_starts_at_zero_velocity_with_open_gates() -> None:
    model = initialise(MMDiT(CONFIG), 0)
    twin = initialise(MMDiT(CONFIG), 0)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert model.last.linear.weight.abs().max() == 0
    assert model.state_dict()["blocks.0.mod.lin"].view(6, -1)[[2, 5]].eq(1).all()
    assert model.first.weight.std().item() == pytest.approx(CONFIG.token_features**-0.5, rel=0.1)
