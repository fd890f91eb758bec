"""A model folder that draws by itself: transformer, text encoder, autoencoder, and how to sample.

manifest.json  sizes, defaults, what it was trained on, sha256 of each file
model.safetensors  autoencoder.safetensors  text.safetensors
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from krea_model import weights
from krea_model.configs import Config
from krea_model.damage import damage_named, read_object
from krea_model.devices import place
from krea_model.minilm import MiniLM, Reduction
from krea_model.mmdit import MMDiT
from krea_model.pipeline import Defaults, Pipeline
from krea_model.sampling import OnStep
from krea_model.smallae import Sizes, SmallAutoencoder
from krea_model.tensorfiles import write_json

__all__ = ["Bundle", "Defaults", "draw", "load", "save"]

FORMAT = "krea-bundle/1"
PARTS = ("config", "autoencoder", "text", "defaults", "about", "sha256")
FILES = ("model.safetensors", "autoencoder.safetensors", "text.safetensors")

Bundle = Pipeline
"""What `load` returns, by its earlier name."""


def save(
    path: str | Path,
    *,
    model: MMDiT,
    reduction: Reduction,
    autoencoder: SmallAutoencoder,
    defaults: Defaults,
    about: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write a bundle; the manifest comes last, so a folder that has one is whole. `about`: data, recipe, commit."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").unlink(missing_ok=True)
    weights.save(path / FILES[0], model.state_dict(), model.config, dtype)
    small = {n: t.to(dtype) if t.ndim == 4 else t for n, t in autoencoder.state_dict().items()}
    weights.write_tensors(path / FILES[1], small, {"format": "pt"})
    text = {"mean": reduction.mean, "basis": reduction.basis.to(dtype), "scale": reduction.scale}
    weights.write_tensors(path / FILES[2], text, {"format": "pt"})
    manifest = {
        "format": FORMAT,
        "config": asdict(model.config),
        "autoencoder": autoencoder.describe(),
        "text": {"encoder": "all-MiniLM-L6-v2", "taps": [2, 4, 6]},
        "defaults": asdict(defaults),
        "about": dict(about),
        "sha256": {name: _sha256(path / name) for name in FILES},
    }
    write_json(path / "manifest.json", manifest)
    return path


def load(path: str | Path, device: str = "cpu", *, dtype: torch.dtype = torch.float32) -> Pipeline:
    """Read and verify a bundle; dtype: of the transformer, the rest stays in fp32.

    ValueError for a folder that is none, or a file that was changed.
    """
    path, device = Path(path), str(place(device))
    manifest = _manifest(path)
    for name, expected in manifest["sha256"].items():
        if not (path / name).is_file() or _sha256(path / name) != expected:
            raise ValueError(f"{path / name} is missing or not what the manifest says; copy the folder again")
    with damage_named(path, "model"):  # a manifest that contradicts itself or the files
        autoencoder = SmallAutoencoder(Sizes(**manifest["autoencoder"]))
        autoencoder.load_state_dict({n: t.to(_kind(t)) for n, t in load_file(path / FILES[1]).items()})
        text = {n: t.float() for n, t in load_file(path / FILES[2]).items()}
        encoder = MiniLM(Reduction(text["mean"], text["basis"], text["scale"]), manifest["text"]["taps"])
        config, defaults = Config(**manifest["config"]), Defaults(**manifest["defaults"])
    deciding = {name: value for name, value in manifest.items() if name != "about"}
    return Pipeline(
        model=weights.load(path / FILES[0], config=config, dtype=dtype, device=device),
        text=encoder,
        autoencoder=autoencoder.eval().to(device),
        defaults=defaults,
        about={"name": path.resolve().name, **manifest["about"]},
        manifest=manifest,
        sha256=hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(),
    )


def draw(
    bundle: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    side_px: int | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Square pictures `b 3 H W`, uint8, one per prompt and seed: `Pipeline.draw` for one size, stacked."""
    pictures = bundle.draw(
        prompts, seeds, width_px=side_px, height_px=side_px, steps=steps, guidance=guidance, on_step=on_step
    )
    return torch.stack(pictures)


def _manifest(path: Path) -> dict[str, Any]:
    if not (path / "manifest.json").is_file():
        raise ValueError(f"{path} is no model folder: it has no manifest.json; name one that has")
    manifest = read_object(path / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path} has format {manifest.get('format')!r}; this version reads {FORMAT!r}")
    lacking = [name for name in PARTS if not isinstance(manifest.get(name), dict)]
    if lacking:
        raise ValueError(
            f"{path / 'manifest.json'} is damaged (it says nothing of {lacking[0]}); copy the folder again"
        )
    return manifest


def _kind(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
