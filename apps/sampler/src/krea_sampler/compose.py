"""Everything that draws, put together in one place: the model's folder, adapters and style on it, the expander."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import krea_style
import numpy as np
import torch
from krea_expander import Level, expand_by_rules
from krea_model import bundle, lora, lora_files
from krea_model.bundle import Bundle
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.mmdit import MMDiT
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor

from krea_sampler.order import Weighted

__all__ = ["Artist", "Setup", "artist", "check_same", "demo_model", "expand"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What draws: a model's folder (None: the one in this package), LoRAs on it, and pictures whose style it takes."""

    model: Path | None = None
    loras: tuple[Weighted, ...] = ()
    styles: tuple[Weighted, ...] = ()
    style_module: Path | None = None

    def __post_init__(self) -> None:
        if self.styles and self.style_module is None:
            raise ValueError("--style needs a trained style module for this model; name its file with --style-module")
        if self.style_module is not None and not self.style_module.is_file():
            raise ValueError(f"no style module at {self.style_module}; it is one .safetensors file")


@dataclass(frozen=True, kw_only=True, slots=True)
class Artist:
    """A model that is ready to draw, and the names and hashes under which its pictures remember what it was made of."""

    bundle: Bundle
    marks: Mapping[str, Any] = field(default_factory=dict)


def demo_model() -> Path:
    """The folder of the model that ships with this package; raises ValueError if this build has none."""
    folder = Path(str(resources.files("krea_sampler"))) / "data" / "model"
    if not folder.is_dir():
        raise ValueError("this build ships no model; name a folder with --model (krea-launch quickstart trains one)")
    return folder


def artist(setup: Setup) -> Artist:
    """Load the model and put LoRAs and styles on it; raises ValueError for a folder or file that cannot be used."""
    folder = setup.model or demo_model()
    loaded = bundle.load(folder)
    velocity = _styled(loaded.model, setup) if setup.styles else None  # before the LoRAs: it knows the bare model
    if setup.loras:
        adapters = [(lora_files.read(one.path), one.strength) for one in setup.loras]
        lora.attach(loaded.model, lora.stack(adapters))
    marks = {
        "model": {"name": str(loaded.manifest["about"].get("name", folder.resolve().name)), "sha256": _hash(loaded)},
        "loras": [_mark(one) for one in setup.loras],
        "styles": [_mark(one) for one in setup.styles],
        "style_module": _mark(Weighted(path=setup.style_module)) if setup.style_module and setup.styles else None,
    }
    return Artist(bundle=loaded if velocity is None else replace(loaded, model=velocity), marks=marks)


def check_same(artist: Artist, parameters: Mapping[str, Any]) -> None:
    """Raise ValueError unless the picture with these parameters was drawn by such an artist."""
    model, mine = parameters.get("model") or {}, artist.marks["model"]
    if model.get("sha256") != mine["sha256"]:
        raise ValueError(
            f"this picture was drawn by {model.get('name')} ({str(model.get('sha256'))[:12]}), not by "
            f"{mine['name']} ({mine['sha256'][:12]}); name that model's folder with --model"
        )
    for flag, key in (("--lora", "loras"), ("--style", "styles")):
        wanted = parameters.get(key) or []
        if [_content(one) for one in wanted] != [_content(one) for one in artist.marks[key]]:
            names = " ".join(f"{flag} {one.get('name')}:{one.get('strength')}" for one in wanted) or f"no {flag}"
            raise ValueError(f"this picture was drawn with {names} (files of the same content); give the same")
    module, mine = parameters.get("style_module"), artist.marks["style_module"]
    if module and mine and _content(module) != _content(mine):
        raise ValueError(f"this picture was drawn with the style module {module.get('name')}, not with {mine['name']}")


def expand(prompts: Sequence[str], level: Level, seed: int) -> tuple[list[str], list[str]]:
    """Prompts in the words that the demo model knows, and notes for the user; raises ValueError for a refused one."""
    found = [expand_by_rules(prompt, level=level, seed=seed)[0] for prompt in prompts]
    refused = next((one for one in found if one.source == "refused"), None)
    if refused is not None:
        raise ValueError(f"{refused.prompt!r} was {refused.notes[0]}")
    return [one.text for one in found], [note for one in found for note in one.notes]


class _Styled:
    """A model with a style that passes for a plain one where pictures are drawn."""

    def __init__(self, base: MMDiT, velocity: Velocity) -> None:
        self.config, self.first = base.config, base.first
        self._velocity = velocity

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning, grids: Grids) -> Tensor:
        return self._velocity(x, t, cond, grids)


@torch.no_grad()
def _styled(model: MMDiT, setup: Setup) -> MMDiT:
    assert setup.style_module is not None
    try:
        module = krea_style.load(setup.style_module, model)
    except SafetensorError as error:
        raise ValueError(f"{setup.style_module} is not a whole safetensors file; copy it again") from error
    device = model.first.weight.device
    pictures = [(_pixels(one.path).to(device), one.strength) for one in setup.styles]
    references = [krea_style.Reference(image=image, strength=strength) for image, strength in pictures]
    module.to(device)
    style = krea_style.style(references, module.encoder(krea_style.scattering))
    return cast(MMDiT, _Styled(model, module.styled(style)))


def _pixels(path: Path) -> Tensor:
    """A picture file as `3 H W` in [-1, 1], upright and on white."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable picture; it may be damaged or cut off") from error
    flat = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return torch.from_numpy(np.asarray(flat).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1  # H W 3 -> 3 H W


def _hash(loaded: Bundle) -> str:
    """sha256 in hex of what decides a picture: sizes, defaults and the weights' hashes."""
    deciding = {name: value for name, value in loaded.manifest.items() if name != "about"}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def _mark(one: Weighted) -> dict[str, Any]:
    with one.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # the bare name: a picture that travels must not tell where its maker keeps files
    return {"name": one.path.name, "sha256": digest, "strength": one.strength}


def _content(one: Mapping[str, Any]) -> tuple[object, object]:
    return one.get("sha256"), one.get("strength")
