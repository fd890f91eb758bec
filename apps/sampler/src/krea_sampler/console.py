"""Standard error: notes, progress, and every failure as one line with an exit code."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from krea_sampler.heard import hearing
from krea_sampler.safety import Refused

if TYPE_CHECKING:
    from krea_sampler.drawing import OnStep

__all__ = ["bar", "note", "plain_errors", "plain_usage", "stderr", "tell"]

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # not exported by itself: it is click's or typer's own


def stderr() -> Console:
    """Where everything but the paths of pictures goes."""
    return Console(stderr=True)


def tell(text: str) -> None:
    """What was asked for, on standard output, at once: so a reader that left or a full disk shows here."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with open(os.devnull, "w") as nowhere:  # for what is left, or Python would complain at its end
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise OSError(f"cannot write to standard output ({error.strerror}); make room or lead it elsewhere") from error


def note(text: str, style: str = "") -> None:
    """One line for the person in front."""
    stderr().print(Text(text, style), soft_wrap=True)


@contextmanager
def bar() -> Iterator["OnStep"]:
    """Progress of drawing, if somebody looks; it is gone at the end."""
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def plain_errors() -> Iterator[None]:
    """One red line and an exit code: 3 for what was refused, 2 for wrong input, 1 for the rest.

    KREA_DEBUG=1 shows where an error came from. Warnings of the model become notes.
    """
    try:
        with hearing(lambda text: note(text, "yellow")):
            yield
    except (typer.Exit, BrokenPipeError):  # the first is a RuntimeError by birth; of the second typer says nothing
        raise
    except Refused as refused:
        note(f"refused: {' '.join(str(refused).split())}", "red")
        raise typer.Exit(3) from refused
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if os.environ.get("KREA_DEBUG") == "1":
            raise
        note(f"error: {' '.join(str(error).split()) or type(error).__name__}", "red")
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error


@contextmanager
def plain_usage() -> Iterator[None]:
    """The same red line for flags that cannot be read, in place of the parser's box."""
    try:
        yield
    except UsageError as error:
        note(f"error: {_usage(error)}", "red")
        raise typer.Exit(getattr(error, "exit_code", 2)) from error


def _usage(error: Exception) -> str:
    """What is wrong with the flags, and where to read what they take."""
    flag, ctx = getattr(error, "param", None), getattr(error, "ctx", None)
    message = str(getattr(error, "message", error))
    if flag is not None and message:
        said = f"{flag.opts[-1]} {message}"
    else:
        said = getattr(error, "format_message", error.__str__)()
        said = said[:1].lower() + said[1:].replace("(Possible", "(possible")
    command = getattr(ctx, "command_path", "krea-sample")
    return f"{' '.join(said.split()).rstrip('.')}; see {command} --help"
