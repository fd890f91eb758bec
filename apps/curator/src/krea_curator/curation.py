"""The whole of a curation: workers until the queues are empty, the pass over all rows, workers again."""

from collections.abc import Callable, Sequence

from krea_data.krablet import Krablet

from krea_curator.compose import Home, chosen, dedup, dsns_file, per_row, telemetry, worker_command
from krea_curator.effort import Effort
from krea_curator.pool import Pool, watch
from krea_curator.standing import Standing, standing

__all__ = ["curate"]

OnStanding = Callable[[Sequence[Standing]], None]


def curate(
    table: Krablet,
    home: Home,
    *,
    names: Sequence[str] = (),
    workers: int = 1,
    effort: Effort | None = None,
    until_idle: bool = True,
    on_standing: OnStanding = lambda standings: None,
    on_drain: Callable[[], None] = lambda: None,
) -> bool:
    """Run some or all tasks with that many processes; False if somebody pressed Ctrl-C.

    With `until_idle` it ends when nothing is left, and `dedup`, which needs all rows, is run in between; without it the
    workers wait for more rows for ever, and `dedup` is left to the caller. About once a second `on_standing` is told
    where every task stands, and the home's progress.jsonl gets a line.
    """
    todo = chosen(names, home.blobs, home.recipe)
    more = (effort or Effort()).words
    note = telemetry(home)

    def look() -> int:
        standings = standing(table.stats(), todo)
        note(standings)
        on_standing(standings)
        return sum(one.done + one.dead for one in standings)

    while True:
        given = [dsns_file(home, table.dsns)]
        command = worker_command(home.folder, given, names=names, until_idle=until_idle, leash=True, more=more)
        if per_row(todo):
            with Pool(command, workers, home.workers) as pool:
                if not watch(pool, look, on_drain):
                    return False
        if all(task.name != "dedup" for task in todo) or not _dedup_due(table):
            return True
        dedup(table, home.recipe)


def _dedup_due(table: Krablet) -> bool:
    stats = table.stats()
    return "hash" in stats and (stats["dedup"].done if "dedup" in stats else 0) < stats["hash"].kept
