"""Bars, notes and errors on standard error; what a command answers goes to standard output."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer
from krea_data.krablet import KrabletError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from krea_curator.standing import Standing

__all__ = ["bars", "note", "plain_errors", "progress"]


def progress() -> Progress:
    """Bars on standard error, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)


def bars(shown: Progress) -> Callable[[Sequence[Standing]], None]:
    """One bar per task and one for all of them, whose remaining time is the one to go by."""
    ids: dict[str, TaskID] = {}

    def show(standings: Sequence[Standing]) -> None:
        rows = [(one.task, one.done + one.dead, one.expected) for one in standings]
        rows.append(("all", sum(done for _, done, _ in rows), sum(expected for _, _, expected in rows)))
        for name, done, expected in rows:
            if name not in ids:
                ids[name] = shown.add_task(name, completed=done, total=expected)
            shown.update(ids[name], completed=done, total=expected)

    return show


@contextmanager
def plain_errors() -> Iterator[None]:
    """One red line and an exit code, 2 for wrong input and 1 for the rest; KREA_DEBUG=1 shows where it came from."""
    try:
        yield
    except typer.Exit:  # a RuntimeError by birth
        raise
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError, KrabletError) as error:
        if os.environ.get("KREA_DEBUG") == "1":
            raise
        note(f"error: {' '.join(str(error).split()) or type(error).__name__}", "red")
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error


def note(text: str, style: str = "") -> None:
    """One line on standard error, however long."""
    Console(stderr=True).print(Text(text, style), soft_wrap=True)
