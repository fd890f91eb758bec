"""Pictures on disk: saved with one click, and found again when the server starts."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krea_sampler import picture
from krea_sampler.compose import Setup
from krea_sampler.order import FORMAT
from krea_sampler.serve.asks import opened
from krea_sampler.serve.boards import Tile
from krea_sampler.serve.engine import Engine

__all__ = ["command", "find", "keep"]

LOOKED_AT = 200  # of the newest files in the folder
SHOWN = 24
FLAGS = {
    "--steps": "steps",
    "--guidance": "guidance",
    "--side-px": "side_px",
    "--width-px": "width_px",
    "--height-px": "height_px",
    "--negative": "negative",
}


def keep(tile: Tile, folder: Path) -> str:
    """Save a finished tile under a free name in the folder and return that name."""
    if tile.parameters is None:
        raise ValueError("this picture is not finished; keep it when it is")
    if tile.kept and (folder / tile.kept).is_file():
        return tile.kept
    picture.check_writable(folder)
    return picture.save(tile.png, folder, tile.stem).name


def find(folder: Path, engine: Engine) -> list[Tile]:
    """Tiles of the newest pictures in the folder that this artist drew, oldest first; other files are passed over."""
    files = [path for path in folder.glob("*.png") if path.is_file()] if folder.is_dir() else []
    newest = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)[:LOOKED_AT]
    tiles = []
    for path in newest:
        tile = _tile(path, engine)
        if tile is not None:
            tiles.append(tile)
        if len(tiles) == SHOWN:
            break
    return tiles[::-1]


def command(parameters: Mapping[str, Any], stem: str, setup: Setup) -> str:
    """The line for a shell that draws this picture; a mixture is repeated from its own file."""
    if parameters.get("format") == FORMAT:
        words = [parameters["prompts"][0], "--seed", parameters["seeds"][0]]
        for flag, name in FLAGS.items():
            words += [flag, parameters[name]] if parameters[name] not in (None, "") else []
        words += ["--preset", setup.preset] if setup.preset else []
    else:
        words = ["--from-png", f"{stem}.png"]
    for flag, value in (("--model", setup.model), ("--encoder", setup.encoder), ("--autoencoder", setup.autoencoder)):
        words += [flag, value] if value else []
    for flag, value in (("--dtype", setup.dtype), ("--quantise", setup.quantise)):
        words += [flag, value] if value else []
    for flag, value, usual in (("--device", setup.device, "auto"), ("--blocks", setup.blocks, "device")):
        words += [flag, value] if value != usual else []
    for flag, files in (("--lora", setup.loras), ("--style", setup.styles)):
        for one in files:
            words += [flag, f"{one.path}:{one.strength}"]
    words += ["--style-module", setup.style_module] if setup.style_module else []
    return shlex.join(["krea-sample", *map(str, words)])


def _tile(path: Path, engine: Engine) -> Tile | None:
    try:
        image = picture.pixels(path)
        parameters = picture.parameters(path)
        tile = opened(parameters, engine)
        png = path.read_bytes() if engine.may_show(image) else b""
    except (ValueError, OSError):
        return None  # of another program or another model
    if not png:
        return None
    tile.finish(parameters, path.stem, png)
    tile.kept, tile.caption = path.name, path.stem
    return tile
