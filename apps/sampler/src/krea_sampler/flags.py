"""Every flag of `krea-sample`, in the order and under the headings of --help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from krea_sampler.heard import shortened

__all__ = [
    "IMAGE_STRENGTH",
    "STYLE_STRENGTH",
    "Autoencoder",
    "Blocks",
    "Count",
    "Detail",
    "Device",
    "Dtype",
    "Encoder",
    "Expand",
    "FromPng",
    "Grid",
    "Guidance",
    "Height",
    "Judge",
    "Lora",
    "Model",
    "Negative",
    "Out",
    "Port",
    "Preset",
    "Preview",
    "Prompts",
    "Quantise",
    "Seed",
    "Side",
    "Size",
    "Start",
    "Steps",
    "Strength",
    "Style",
    "StyleModule",
    "Width",
]

STYLE_STRENGTH = 0.6
IMAGE_STRENGTH = 0.6
MODEL, PICTURE, ADAPT, WRITE = "What draws", "What is drawn", "What it is led by", "What is written"


class Detail(StrEnum):
    """How much --expand may add."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{shortened(text)!r}; write a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{shortened(text)!r}; write a number, such as 2.5") from None


def _detail(text: str) -> Detail:
    try:
        return Detail(text)
    except ValueError:
        raise typer.BadParameter(f"{shortened(text)!r}; use {', '.join(Detail)}") from None


WHOLE = {"parser": _whole, "metavar": "<int>"}  # typer's own words leave out the value
NUMBER = {"parser": _number, "metavar": "<float>"}


def _flag(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


Prompts = Annotated[list[str] | None, typer.Argument(help="What to draw; may be several.")]
Seed = Annotated[int | None, _flag(PICTURE, "The first seed; 0 unless given.", **WHOLE)]
Count = Annotated[int | None, _flag(PICTURE, "Seeds per prompt: seed, seed + 1, and so on.", **WHOLE)]
Size = Annotated[str | None, _flag(PICTURE, "WIDTHxHEIGHT in pixels, or the side of a square.")]
Width = Annotated[int | None, _flag(PICTURE, "Pixels across; the model's own unless given.", **WHOLE)]
Height = Annotated[int | None, _flag(PICTURE, "Pixels down; the model's own unless given.", **WHOLE)]
Side = Annotated[int | None, _flag(PICTURE, "Pixels along each side of a square.", **WHOLE)]
Steps = Annotated[int | None, _flag(PICTURE, "Sampling steps; the model's own number unless given.", **WHOLE)]
Guidance = Annotated[
    list[float] | None, _flag(PICTURE, "0 is none; the model's own unless given; may be repeated.", **NUMBER)
]
Negative = Annotated[str | None, _flag(PICTURE, "What guidance leads away from.")]
FromPng = Annotated[Path | None, _flag(PICTURE, "Take everything from a picture; flags change parts.")]
Model = Annotated[str | None, _flag(MODEL, "Folder, .safetensors file or hub id; without it, the one that ships.")]
Encoder = Annotated[Path | None, _flag(MODEL, "Folder of the text encoder, if the model has none.")]
Autoencoder = Annotated[Path | None, _flag(MODEL, "Folder of the autoencoder, if the model has none.")]
Preset = Annotated[str | None, _flag(MODEL, "raw or turbo: steps, guidance and times; else the model's own.")]
Dtype = Annotated[str | None, _flag(MODEL, "bfloat16, float32 or float16; as stored unless given.")]
Device = Annotated[str, _flag(MODEL, "auto, cpu, cuda or cuda:1.")]
Quantise = Annotated[str | None, _flag(MODEL, "int8 or fp8: half of bfloat16's memory, pictures a little different.")]
Blocks = Annotated[str, _flag(MODEL, "Where blocks wait their turn: device, memory or disk; slower, in less memory.")]
Lora = Annotated[list[str] | None, _flag(ADAPT, "PATH or PATH:STRENGTH; may be repeated.")]
Start = Annotated[Path | None, _flag(ADAPT, "A picture to start from.")]
Strength = Annotated[
    float | None, _flag(ADAPT, f"How much of --image is drawn anew, up to 1; usually {IMAGE_STRENGTH}.", **NUMBER)
]
Style = Annotated[list[str] | None, _flag(ADAPT, "PICTURE or PICTURE:STRENGTH; may be repeated.")]
StyleModule = Annotated[Path | None, _flag(ADAPT, "The trained style module that --style needs.")]
Expand = Annotated[
    Detail | None, _flag(ADAPT, "Say the prompt in more words first.", parser=_detail, metavar="<low|medium|high>")
]
Out = Annotated[Path, _flag(WRITE, "A folder, or the name of one .png file.")]
Grid = Annotated[bool, _flag(WRITE, "One contact sheet: prompts and guidances down, seeds across.", "--grid")]
Preview = Annotated[bool, _flag(WRITE, "Keep a small picture of the work beside the output meanwhile.", "--preview")]
Judge = Annotated[str | None, _flag(WRITE, "MODULE:NAME of a classifier that sees prompts and pictures.", "--safety")]
Port = Annotated[int, typer.Option(help="0 is any that is free.", **WHOLE)]
