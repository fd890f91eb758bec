"""How a map shows where it is: a bar in a terminal, a box in a notebook, a line now and then elsewhere."""

import html
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from krea_data.krablet.pluck.maps import Progress

__all__ = ["Bar", "Board", "Box", "Lines", "Nothing", "board", "html_text", "plain_text"]

_LINE_S = 10.0


class Board(Protocol):
    """Where progress is shown."""

    def show(self, name: str, progress: Progress) -> None:
        """Show how far the map is."""
        ...

    def close(self, name: str, progress: Progress, error: Exception | None) -> None:
        """Show how the map ended."""
        ...


def board(stream: TextIO | None = None) -> Board:
    """What suits the place: a notebook, a terminal or neither."""
    stream = sys.stderr if stream is None else stream
    kernel = _kernel()
    if kernel is not None:
        return Box(kernel)
    if stream is None:  # as under pythonw
        return Nothing()
    return Bar(stream) if stream.isatty() else Lines(stream)


def plain_text(name: str, progress: Progress, error: Exception | None = None) -> str:
    """Progress in a line."""
    parts = [f"{progress.rows:,} of about {max(progress.expected, progress.rows + progress.failed):,} rows"]
    parts[0] += f" ({100 * progress.share:.0f} %)"
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    parts.append(f"{progress.workers} workers" if progress.workers else _state(progress))
    if error is not None:
        parts.append(str(error).partition("\n")[0])
    return f"map {name}: " + ", ".join(parts)


def html_text(name: str, progress: Progress, error: Exception | None = None) -> str:
    """Progress as a box for a notebook."""
    colour = "#c33" if error is not None else "#2a7"
    return (
        '<div style="font-family: monospace">'
        f"<div>{html.escape(plain_text(name, progress, error))}</div>"
        '<div style="background: #ddd; width: 30em; height: 0.6em">'
        f'<div style="background: {colour}; width: {100 * progress.share:.1f}%; height: 100%"></div></div></div>'
    )


class Nothing:
    """Shows nothing."""

    def show(self, name: str, progress: Progress) -> None:
        """Nothing."""

    def close(self, name: str, progress: Progress, error: Exception | None) -> None:
        """Nothing."""


class Lines:
    """A line every ten seconds and at the end, for logs."""

    def __init__(self, stream: TextIO, every_s: float = _LINE_S) -> None:
        self._stream, self._every_s = stream, every_s
        self._due = time.monotonic() + every_s

    def show(self, name: str, progress: Progress) -> None:
        """A line, if the last one is old."""
        if time.monotonic() >= self._due:
            self._write(plain_text(name, progress))
            self._due = time.monotonic() + self._every_s

    def close(self, name: str, progress: Progress, error: Exception | None) -> None:
        """A last line."""
        self._write(plain_text(name, progress, error))

    def _write(self, line: str) -> None:
        if not self._stream.closed:
            print(line, file=self._stream, flush=True)


class Bar:
    """A bar with rate and time left."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # heavy, and of no use without a terminal
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = [TextColumn("map {task.description}"), BarColumn(), MofNCompleteColumn()]
        more = [TextColumn("{task.fields[note]}"), TimeRemainingColumn()]
        self._bars = Bars(*columns, *more, console=Console(file=stream))
        self._task = self._bars.add_task("", note="", total=None)
        self._bars.start()

    def show(self, name: str, progress: Progress) -> None:
        """Move the bar."""
        done = progress.rows + progress.failed
        note = f"{progress.workers} workers" + (f", {progress.failed:,} failed" if progress.failed else "")
        self._bars.update(
            self._task,
            description=name.replace("[", r"\["),
            completed=done,
            total=max(done, progress.expected),
            note=note,
        )

    def close(self, name: str, progress: Progress, error: Exception | None) -> None:
        """Leave the bar as it is."""
        self.show(name, progress)
        self._bars.stop()


class Box:
    """A box in a notebook that is redrawn in place."""

    def __init__(self, show: Callable[..., Any]) -> None:
        self._handle = show(_View("", Progress(), None), display_id=True)

    def show(self, name: str, progress: Progress) -> None:
        """Draw it again."""
        self._handle.update(_View(name, progress, None))

    def close(self, name: str, progress: Progress, error: Exception | None) -> None:
        """Draw it for the last time."""
        self._handle.update(_View(name, progress, error))


class _View:
    """What the notebook draws."""

    def __init__(self, name: str, progress: Progress, error: Exception | None) -> None:
        self._what = name, progress, error

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": plain_text(*self._what), "text/html": html_text(*self._what)}


def _state(progress: Progress) -> str:
    if progress.state != "running":
        return progress.state
    return "done" if progress.done else "waiting for workers"


def _kernel() -> Callable[..., Any] | None:
    """IPython's `display`, inside a kernel such as Jupyter's."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # only there inside a kernel  # pyright: ignore

    return display
