"""The command line of krea-sample: flags into an order, errors into one sentence. What they do is in `compose`."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from typer.core import TyperGroup

from krea_sampler import picture
from krea_sampler.delivery import target
from krea_sampler.interrupt import at_once
from krea_sampler.order import Order, weighted

if TYPE_CHECKING:
    from krea_sampler.drawing import OnStep

__all__ = ["app"]

EXAMPLES = """
Examples

krea-sample "a red apple, flat style"

krea-sample "a fox" "a rocket" --n 4 --grid

krea-sample --from-png a-fox-s0.png --seed 7

krea-sample show a-fox-s0.png
"""


class _DrawUnlessNamed(TyperGroup):
    """Where the first word names no command, `draw` is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["draw", *args])


STYLE_STRENGTH = 0.6


class Detail(StrEnum):
    """How much --expand may add."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


app = typer.Typer(cls=_DrawUnlessNamed, add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog=EXAMPLES)
def draw(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to draw; may be several.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a saved model; without it, the one that ships.")] = None,
    out: Annotated[Path, typer.Option(help="A folder, or the name of one .png file.")] = Path("."),
    seed: Annotated[int | None, typer.Option(help="The first seed; 0 unless given.")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Seeds per prompt: seed, seed + 1, and so on.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the model's own number unless given.")] = None,
    guidance: Annotated[float | None, typer.Option(help="0 is none; the model's own unless given.")] = None,
    side_px: Annotated[int | None, typer.Option(help="Pixels along each side; the model's own unless given.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="One contact sheet, prompts down and seeds across.")] = False,
    lora: Annotated[list[str] | None, typer.Option(help="PATH or PATH:STRENGTH; may be repeated.")] = None,
    style: Annotated[list[str] | None, typer.Option(help="PICTURE or PICTURE:STRENGTH; may be repeated.")] = None,
    style_module: Annotated[Path | None, typer.Option(help="The trained style module that --style needs.")] = None,
    expand: Annotated[Detail | None, typer.Option(help="Say the prompt in more words first.")] = None,
    from_png: Annotated[Path | None, typer.Option(help="Take everything from a picture; flags change parts.")] = None,
) -> None:
    """Draw pictures. Each PNG carries what made it, and --from-png repeats it to the last bit."""
    with _plain_errors():
        found = picture.parameters(from_png) if from_png else None
        if found and (prompts or expand):
            raise ValueError("--from-png brings its own prompt; leave out prompts and --expand, or --from-png")
        asked = Order.of(found) if found else Order(prompts=tuple(prompts or ()))
        order = asked.with_changes(
            seed=seed, n=n, steps=steps, guidance=guidance, side_px=side_px, grid=True if grid else None
        )
        place = target(out, 1 if order.grid else len(order.pictures))
        with at_once():
            from krea_sampler import compose, drawing  # not at the top: they load torch, which --help can do without

        setup = compose.Setup(
            model=model,
            loras=tuple(weighted(text) for text in lora or []),
            styles=tuple(weighted(text, STYLE_STRENGTH) for text in style or []),
            style_module=style_module,
        )
        wishes = list((found or {}).get("wishes") or [])
        if expand is not None:
            wishes = list(order.prompts)
            texts, notes = compose.expand(wishes, expand.value, order.seeds[0])
            order = replace(order, prompts=tuple(texts))
            for said in [*notes, *texts]:
                _note(said)
        artist = compose.artist(setup)
        if found:
            compose.check_same(artist, found)
        with _bar() as on_step:
            for drawn in drawing.draw(artist, order, wishes, on_step):
                print(place.put(drawn.image, drawn.parameters, drawn.stem))
                if from_png and order == asked:
                    _compare(drawing.difference(from_png, drawn.image), from_png)


@app.command()
def show(png: Annotated[Path, typer.Argument(help="A picture of krea-sample.")]) -> None:
    """Print a picture's parameters as JSON."""
    with _plain_errors():
        print(json.dumps(picture.parameters(png), ensure_ascii=False, indent=2))


def _compare(levels: int, before: Path) -> None:
    if levels == 0:
        _note(f"identical to {before}", "green")
    else:
        _note(f"differs from {before} by up to {levels} of 255: another machine or torch", "yellow")


@contextmanager
def _bar() -> Iterator["OnStep"]:
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    console = _stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """One red line and an exit code, 2 for wrong input and 1 for the rest; KREA_DEBUG=1 shows where it came from."""
    try:
        yield
    except typer.Exit:  # a RuntimeError by birth
        raise
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if os.environ.get("KREA_DEBUG") == "1":
            raise
        _note(f"error: {' '.join(str(error).split()) or type(error).__name__}", "red")
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error


def _note(text: str, style: str = "") -> None:
    _stderr().print(Text(text, style), soft_wrap=True)


def _stderr() -> Console:
    return Console(stderr=True)
