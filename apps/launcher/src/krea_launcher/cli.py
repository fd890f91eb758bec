"""The command line of krea-launch: flags in, a run out. What it does is in `quickstart`."""

import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from krea_curator.interrupt import at_once
from krea_data.demo import FetchError
from krea_data.krablet import KrabletError
from rich.console import Console
from rich.text import Text

from krea_launcher.run import open_run

__all__ = ["app"]

NAMES = ("nano", "small", "smoke")  # of presets; their module needs torch, which is slow to import

EXAMPLES = """
Examples

krea-launch quickstart

krea-launch quickstart --preset small --out runs/small

krea-launch quickstart --seed 1 --out runs/another
"""

app = typer.Typer(
    help="Run a recipe of the open Krea 2 stack.",
    epilog=EXAMPLES,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Run a recipe of the open Krea 2 stack."""


@app.command(epilog=EXAMPLES)
def quickstart(
    preset: Annotated[str, typer.Option(help=f"How much to do: {', '.join(NAMES)}.")] = "nano",
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Another seed is another model.", min=0, max=2**32 - 1)] = 0,
    cache: Annotated[Path | None, typer.Option(help="Where downloads lie; KREA_CACHE unless given.")] = None,
) -> None:
    """From real pictures to a model that draws: fetch, curate, train, sample, report. Goes on where it was stopped."""
    with plain_errors(out):
        if preset not in NAMES:
            raise ValueError(f"no preset {preset!r}; choose from {', '.join(NAMES)}")
        console = Console()
        console.print("importing torch", style="dim")
        with at_once():
            from krea_launcher.compose import build
            from krea_launcher.presets import PRESETS
        chosen = PRESETS[preset]()
        with open_run(out, {"preset": asdict(chosen), "seed": seed}) as run:
            warnings.filterwarnings("ignore", module="torch")
            with build(run, chosen, seed, console, cache) as work:
                report = work()
            console.print(f"\n[bold]The report:[/] {report}", highlight=False, soft_wrap=True)
            draw = f'uv run krea-sample "red apple, flat style" --model {shlex.quote(str(run.folder / "model"))}'
            console.print(f"Draw: {draw}", highlight=False, soft_wrap=True)


@contextmanager
def plain_errors(out: Path) -> Iterator[None]:
    """One red line and an exit code instead of a traceback; KREA_DEBUG=1 shows the traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _say(f"stopped; the same command goes on in {out}")
        raise typer.Exit(130) from None
    except (ValueError, FetchError, KrabletError, FloatingPointError, ImportError) as error:
        if os.environ.get("KREA_DEBUG"):
            raise
        _say(str(error))
        raise typer.Exit(2) from None
    except OSError as error:
        if os.environ.get("KREA_DEBUG"):
            raise
        _say(f"{error.strerror or error} ({error.filename or out}); free space or choose another --out, then go on")
        raise typer.Exit(1) from None


def _say(text: str) -> None:
    Console(stderr=True).print(Text(text, style="red"), soft_wrap=True)
