"""Everything that draws, put together in one place: the model's folder, adapters and style on it, the expander."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from importlib import resources
from pathlib import Path
from typing import Any, cast

import krea_model
import krea_style
import numpy as np
import torch
from krea_expander import Level, expand_by_rules
from krea_model import lora, lora_files
from krea_model.interfaces import Conditioning, Grids, Velocity
from krea_model.loading import Blocks
from krea_model.mmdit import MMDiT
from krea_model.pipeline import Pipeline
from krea_model.quantise import Kind
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor

from krea_sampler.order import Weighted

__all__ = ["Artist", "Setup", "artist", "check_same", "demo_model", "expand"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What draws: a model, LoRAs on it, pictures whose style it takes, and a picture to start from.

    model: a folder, a file, an id of the hub, or None for the one in this package. encoder, autoencoder: folders of the
        other parts, for a checkpoint that is a transformer alone.
    preset: "raw" or "turbo"; None: what the model says. dtype: None is the model's own. device: "auto" is a GPU if
        there is one. quantise, blocks: for less memory, as in `krea_model.load`.
    """

    model: Path | str | None = None
    encoder: Path | None = None
    autoencoder: Path | None = None
    preset: str | None = None
    dtype: str | None = None
    device: str = "auto"
    quantise: Kind | None = None
    blocks: Blocks = "device"
    loras: tuple[Weighted, ...] = ()
    styles: tuple[Weighted, ...] = ()
    style_module: Path | None = None
    image: Weighted | None = None

    def __post_init__(self) -> None:
        if self.styles and self.style_module is None:
            raise ValueError("--style needs a trained style module for this model; name its file with --style-module")
        if self.style_module is not None and not self.style_module.is_file():
            raise ValueError(f"no style module at {self.style_module}; it is one .safetensors file")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"number format {self.dtype!r}; use {', '.join(DTYPES)}")
        if self.image is not None and not 0 < self.image.strength <= 1:
            raise ValueError(f"strength {self.image.strength}; use more than 0 (keep the picture) up to 1 (forget it)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Artist:
    """A model that is ready to draw, and the names and hashes under which its pictures remember what it was made of.

    image: the picture to start from, upright, in RGB, with how much of it is drawn anew.
    """

    bundle: Pipeline
    marks: Mapping[str, Any] = field(default_factory=dict)
    image: Image.Image | None = None
    strength: float = 1.0


def demo_model() -> Path:
    """The folder of the model that ships with this package; raises ValueError if this build has none."""
    folder = Path(str(resources.files("krea_sampler"))) / "data" / "model"
    if not folder.is_dir():
        raise ValueError("this build ships no model; name a folder with --model (krea-launch quickstart trains one)")
    return folder


def artist(setup: Setup) -> Artist:
    """Load the model and put LoRAs and styles on it; raises ValueError for a folder or file that cannot be used."""
    image = _upright(setup.image.path) if setup.image else None
    adapters = [(lora_files.read(one.path), one.strength) for one in setup.loras]  # before the long wait for the model
    loaded = krea_model.load(
        setup.model or demo_model(),
        encoder=setup.encoder,
        autoencoder=setup.autoencoder,
        preset=setup.preset,
        dtype=DTYPES[setup.dtype] if setup.dtype else None,
        device=_device(setup.device),
        quantise=setup.quantise,
        blocks=setup.blocks,
    )
    velocity = _styled(loaded.model, setup) if setup.styles else None  # before the LoRAs: it knows the bare model
    if adapters:
        lora.attach(loaded.model, lora.stack(adapters))
    marks = {
        "model": {"name": str(loaded.about["name"]), "sha256": loaded.sha256},
        "preset": setup.preset,
        "dtype": setup.dtype,
        "quantise": setup.quantise,
        "loras": [_mark(one) for one in setup.loras],
        "styles": [_mark(one) for one in setup.styles],
        "style_module": _mark(Weighted(path=setup.style_module)) if setup.style_module and setup.styles else None,
        "image": _mark(setup.image) if setup.image else None,
    }
    bundle = loaded if velocity is None else replace(loaded, model=velocity)
    return Artist(bundle=bundle, marks=marks, image=image, strength=setup.image.strength if setup.image else 1.0)


def check_same(artist: Artist, parameters: Mapping[str, Any]) -> None:
    """Raise ValueError unless the picture with these parameters was drawn by such an artist."""
    model, mine = parameters.get("model") or {}, artist.marks["model"]
    if model.get("sha256") != mine["sha256"]:
        raise ValueError(
            f"this picture was drawn by {model.get('name')} ({str(model.get('sha256'))[:12]}), not by "
            f"{mine['name']} ({mine['sha256'][:12]}); name that model with --model"
        )
    for flag, key in (("--lora", "loras"), ("--style", "styles")):
        wanted = parameters.get(key) or []
        if [_content(one) for one in wanted] != [_content(one) for one in artist.marks[key]]:
            names = " ".join(f"{flag} {one.get('name')}:{one.get('strength')}" for one in wanted)
            if not names:
                raise ValueError(f"this picture was drawn without {flag}; leave it out")
            raise ValueError(f"this picture was drawn with {names} (files of the same content); give the same")
    module, mine = parameters.get("style_module"), artist.marks["style_module"]
    if module and mine and _content(module) != _content(mine):
        raise ValueError(f"this picture was drawn with the style module {module.get('name')}, not with {mine['name']}")
    image, mine = parameters.get("image"), artist.marks["image"]
    if _content(image or {}) != _content(mine or {}):
        if not image:
            raise ValueError("this picture was drawn without --image; leave it out")
        names = f"--image {image.get('name')} --strength {image.get('strength')}"
        raise ValueError(f"this picture was drawn with {names} (a file of the same content); give the same")


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
    return (
        torch.from_numpy(np.asarray(_upright(path)).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    )  # H W 3 -> 3 H W


def _upright(path: Path) -> Image.Image:
    """A picture file in RGB, turned as its camera says, on white where it is transparent."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable picture; it may be damaged or cut off") from error
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}; use auto, cpu, cuda or cuda:1") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: this machine shows no such GPU to torch; use --device cpu")
    return found


def _mark(one: Weighted) -> dict[str, Any]:
    with one.path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    # the bare name: a picture that travels must not tell where its maker keeps files
    return {"name": one.path.name, "sha256": digest, "strength": one.strength}


def _content(one: Mapping[str, Any]) -> tuple[object, object]:
    return one.get("sha256"), one.get("strength")
