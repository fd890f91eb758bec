"""Bars for the whole and for what is being done now, with the time left; plain lines where there is no terminal."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

__all__ = ["Progress", "remaining"]


def remaining(
    expected: Mapping[str, float], done: Mapping[str, float], name: str, share: float, spent_s: float
) -> float:
    """Seconds left: what was expected of the rest, scaled by how this machine kept to expectations so far."""
    finished = sum(expected[one] for one in done) + expected.get(name, 0.0) * share
    pace = (sum(done.values()) + spent_s) / finished if finished > 0 else 1.0
    return max(0.0, (sum(expected.values()) - finished) * pace)


class Progress:
    """expected: seconds of each stage on the machine that the preset was measured on; only their ratios matter."""

    def __init__(self, console: Console, expected: Mapping[str, float], finished: Mapping[str, float]) -> None:
        self.console, self.expected, self.done = console, dict(expected), dict(finished)
        self.name, self.start, self.share, self.said = "", time.monotonic(), 0.0, 0.0
        self.bars = Bars(
            TextColumn("{task.description:<38}"), BarColumn(40), TextColumn("{task.fields[note]}"), console=console
        )
        self.whole = self.bars.add_task("quickstart", total=sum(self.expected.values()), note="")
        self.now = self.bars.add_task("", total=1.0, note="")

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around a stage; one that is finished already is passed silently."""
        known = name in self.done
        self.name, self.start, self.share = name, time.monotonic(), 0.0
        yield
        if not known:
            self.done[name] = time.monotonic() - self.start
            self.console.print(f"[green]done[/] {name} in {self.done[name]:.0f} s", highlight=False)
        self.name, self.share = "", 0.0
        self._show("")

    def tick(self, what: str, done: float, total: float) -> None:
        """Something moved inside the stage."""
        self.share = done / total if total else 0.0
        self._show(f"{what} {done:.0f}/{total:.0f}")

    def _show(self, what: str) -> None:
        left = remaining(self.expected, self.done, self.name, self.share, time.monotonic() - self.start)
        past = sum(self.expected[one] for one in self.done if one in self.expected)
        past += self.expected.get(self.name, 0.0) * self.share if self.name not in self.done else 0.0
        note = f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"
        self.bars.update(self.whole, completed=past, note=note)
        self.bars.update(self.now, completed=self.share, description=what[:38], note=self.name)
        if not self.console.is_terminal and what and time.monotonic() - self.said > 15:
            self.said = time.monotonic()
            self.console.print(f"{self.name}: {what}; {note}", highlight=False)
