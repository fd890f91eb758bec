"""What people read in the terminal: the funnel, where the tasks stand, copies, licences."""

from collections import Counter
from collections.abc import Mapping, Sequence

from krea_data.rows import Dead, Result, Row, Stats
from krea_data.summary import Step
from rich.console import Group
from rich.table import Table
from rich.text import Text

__all__ = ["copies", "failures", "funnel", "licences", "status"]


def funnel(steps: Sequence[Step]) -> Table:
    """One line per task and one per reason, with ids of rows as examples."""
    table = Table(title="funnel", caption=_summary(steps))
    for heading in ("task", "seen", "kept", "dropped"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    table.add_column("why, and which", overflow="fold")
    for step in steps:
        waiting = f"{step.waiting} waiting" if step.waiting else ""
        table.add_row(step.task, str(step.seen), str(step.kept), str(sum(step.dropped.values())), waiting)
        for reason, number in step.dropped.items():
            shown = ", ".join(step.examples.get(reason, ()))
            table.add_row("", "", "", str(number), Text.assemble((reason, "bold"), f": {shown}"))
    return table


def status(stats: Mapping[str, Stats], order: Sequence[str], rates: Mapping[str, float]) -> Table:
    """Answered and waiting rows of each task, and rows per second."""
    table = Table(title="tasks")
    for heading in ("task", "answered", "kept", "waiting", "in work", "given up", "rows/s"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name in order:
        one = stats.get(name, Stats())
        cells = (one.done, one.kept, one.queued, one.leased, one.dead)
        table.add_row(name, *map(str, cells), f"{rates.get(name, 0.0):.1f}")
    return table


def failures(dead: Mapping[str, Sequence[Dead]], most: int = 5) -> Group:
    """The first rows that each task gave up on, and why."""
    lines = []
    for task, rows in dead.items():
        for row in rows[:most]:
            error = " ".join(row.error.split())
            lines.append(Text(f"{task} gave up on {row.id} after {row.attempts} attempts: {error}"))
        if len(rows) > most:
            lines.append(Text(f"{task} gave up on {len(rows) - most} more"))
    return Group(*lines)


def copies(dropped: Mapping[str, Result], most: int = 20) -> Table:
    """Which row was dropped for which, and how many bits apart they are."""
    reasons = Counter(result.drop for result in dropped.values())
    caption = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common()) or "no copies"
    table = Table(title="copies", caption=caption)
    for heading in ("dropped", "stays", "why"):
        table.add_column(heading, overflow="fold")
    for heading in ("shape bits", "colour bits"):
        table.add_column(heading, justify="right")
    for row_id, result in sorted(dropped.items())[:most]:
        value = result.value
        table.add_row(row_id, str(value["kept"]), result.drop, str(value["phash"]), str(value["colour"]))
    return table


def licences(rows: Sequence[Row]) -> Table:
    """Pictures by source, licence and author."""
    table = Table(title=f"{len(rows)} pictures")
    for heading in ("source", "licence", "author"):
        table.add_column(heading, overflow="fold")
    table.add_column("pictures", justify="right")
    keys = ("source", "licence", "author")
    counts = Counter(tuple(str(row.meta.get(key) or "unknown") for key in keys) for row in rows)
    for who, number in sorted(counts.items()):
        table.add_row(*who, str(number))
    return table


def _summary(steps: Sequence[Step]) -> str:
    first, last = steps[0], steps[-1]
    waiting = sum(step.waiting for step in steps)
    text = f"{last.kept} of {first.seen + first.waiting} rows kept"
    return f"{text}, {waiting} waiting" if waiting else text
