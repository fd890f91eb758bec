"""A model folder that draws by itself: transformer, text encoder, autoencoder, and how to sample.

manifest.json  sizes, defaults, what it was trained on, sha256 of each file
model.safetensors  autoencoder.safetensors  text.safetensors
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from krea_model import weights
from krea_model.configs import Config
from krea_model.interfaces import Conditioning, TextEncoder
from krea_model.minilm import MiniLM, Reduction
from krea_model.mmdit import MMDiT
from krea_model.packing import unpack
from krea_model.sampling import noise, sample
from krea_model.smallae import Sizes, SmallAutoencoder

__all__ = ["Bundle", "Defaults", "draw", "load", "save"]

FORMAT = "krea-bundle/1"
FILES = ("model.safetensors", "autoencoder.safetensors", "text.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """How to sample when nothing else is asked for; guidance 0 means none, mu is the shift of the times."""

    side_px: int = 64
    steps: int = 24
    guidance: float = 2.0
    mu: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """Everything that turns a prompt into a picture."""

    model: MMDiT
    text: TextEncoder
    autoencoder: SmallAutoencoder
    defaults: Defaults
    manifest: Mapping[str, Any]


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
    part = path / f".manifest.{os.getpid()}.part"
    part.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")
    os.replace(part, path / "manifest.json")
    return path


def load(path: str | Path, device: str = "cpu") -> Bundle:
    """Read and verify a bundle, weights in fp32. ValueError for a folder that is none, or a file that was changed."""
    path = Path(path)
    manifest = _manifest(path)
    for name, expected in manifest["sha256"].items():
        if not (path / name).is_file() or _sha256(path / name) != expected:
            raise ValueError(f"{path / name} is missing or not what the manifest says; copy the folder again")
    autoencoder = SmallAutoencoder(Sizes(**manifest["autoencoder"]))
    autoencoder.load_state_dict({n: t.to(_kind(t)) for n, t in load_file(path / FILES[1]).items()})
    text = {n: t.float() for n, t in load_file(path / FILES[2]).items()}
    encoder = MiniLM(Reduction(text["mean"], text["basis"], text["scale"]), manifest["text"]["taps"])
    return Bundle(
        model=weights.load(path / FILES[0], config=Config(**manifest["config"]), dtype=torch.float32, device=device),
        text=encoder,
        autoencoder=autoencoder.eval().to(device),
        defaults=Defaults(**manifest["defaults"]),
        manifest=manifest,
    )


def draw(
    bundle: Bundle,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    side_px: int | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Pictures `b 3 H W`, uint8, one per prompt and seed; None takes the bundle's default."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed per prompt")
    defaults, config = bundle.defaults, bundle.model.config
    side = defaults.side_px if side_px is None else side_px
    unit = bundle.autoencoder.compression * config.patch
    if side < unit or side % unit:
        raise ValueError(f"side {side} px is not a multiple of {unit}; use {max(unit, side // unit * unit)}")
    strength = defaults.guidance if guidance is None else guidance
    cells = side // unit
    grids = [(cells, cells)] * len(prompts)
    device = bundle.model.first.weight.device
    tokens = sample(
        bundle.model,
        noise(seeds, grids, config.token_features, device, patch=config.patch),
        _to(bundle.text(list(prompts)), device),
        grids,
        steps=defaults.steps if steps is None else steps,
        mu=defaults.mu,
        guidance=strength,
        uncond=_to(bundle.text([""] * len(prompts)), device) if strength else None,
        on_step=on_step,
    )
    images = bundle.autoencoder.decode(torch.stack(unpack(tokens.float(), grids, config.patch)))
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().cpu()


def _to(cond: Conditioning, device: torch.device) -> Conditioning:
    return Conditioning(cond.states.to(device), cond.lengths)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is no model folder: it has no manifest.json; name one that has") from error
    except ValueError as error:
        raise ValueError(f"{path / 'manifest.json'} is damaged ({error}); copy the folder again") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path} has format {manifest.get('format')!r}; this version reads {FORMAT!r}")
    return manifest


def _kind(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
