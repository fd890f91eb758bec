"""Everything that draws, put together in one place: the model's folder and the adapters on it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from krea_model import bundle, lora, lora_files
from krea_model.bundle import Bundle

from krea_sampler.order import Weighted

__all__ = ["Artist", "Setup", "artist", "demo_model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What draws: a model's folder (None: the one in this package) and the LoRAs on it."""

    model: Path | None = None
    loras: tuple[Weighted, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Artist:
    """A loaded model and the names and hashes under which pictures remember it."""

    bundle: Bundle
    model: dict[str, str]
    loras: tuple[dict[str, Any], ...] = ()


def demo_model() -> Path:
    """The folder of the model that ships with this package; raises ValueError if this build has none."""
    folder = Path(str(resources.files("krea_sampler"))) / "data" / "model"
    if not folder.is_dir():
        raise ValueError("this build ships no model; name a folder with --model (krea-launch quickstart trains one)")
    return folder


def artist(setup: Setup) -> Artist:
    """Load the model, put its LoRAs on; raises ValueError for a folder or file that holds no usable weights."""
    folder = setup.model or demo_model()
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}; --model takes the folder of a saved model")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"{folder} holds no weights (*.safetensors); --model takes the folder of a saved model")
    loaded = bundle.load(folder)
    if setup.loras:
        adapters = [(lora_files.read(one.path), one.strength) for one in setup.loras]
        lora.attach(loaded.model, lora.stack(adapters))
    return Artist(
        bundle=loaded,
        model={"name": str(loaded.manifest.get("name", folder.name)), "sha256": fingerprint(files, folder)},
        loras=tuple(_identity(one) for one in setup.loras),
    )


def fingerprint(files: Sequence[Path], root: Path) -> str:
    """sha256 over the names (relative to root) and contents of files, in hex."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _identity(one: Weighted) -> dict[str, Any]:
    # the bare name: a picture that travels must not tell where its maker keeps files
    return {"name": one.path.name, "sha256": fingerprint([one.path], one.path), "strength": one.strength}
