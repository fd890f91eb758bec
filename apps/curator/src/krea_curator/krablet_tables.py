"""What operators read in the terminal: shards, queues, what a check found."""

from collections.abc import Mapping, Sequence

from krea_data.krablet import Krablet, ShardDown
from krea_data.krablet.checks.check import Finding
from psycopg.conninfo import conninfo_to_dict
from rich.table import Table
from rich.text import Text

__all__ = ["Finding", "findings", "queues", "shards", "shown"]

# Counted while that is quick, from the server's statistics beyond.
_SIZES = """
select case when (select reltuples from pg_class where oid = 'images'::regclass) > 1000000
    then (select reltuples::bigint from pg_class where oid = 'images'::regclass)
    else (select count(*) from images) end,
  sum(pg_total_relation_size(oid)), current_setting('server_version')
from pg_class where relnamespace = current_schema()::regnamespace and relkind = 'r'"""


def shards(krablet: Krablet) -> Table:
    """One line per shard: where it is, its pictures' rows, its bytes on disk, its slots."""
    table = Table(title="shards")
    for heading in ("shard", "where", "state", "PostgreSQL"):
        table.add_column(heading, overflow="fold")
    for heading in ("rows", "MiB", "slots"):
        table.add_column(heading, justify="right")
    for number in krablet.shards.numbers:
        where, slots = shown(krablet.shards.dsn(number)), str(len(krablet.router.held(number)))
        try:
            row = krablet.shards.attempt(number, lambda c: c.execute(_SIZES).fetchone(), patience_s=2.0)
        except ShardDown:
            table.add_row(str(number), where, Text("down", "red"), "", "", "", slots)
            continue
        rows, size, version = row or (0, 0, "")
        table.add_row(str(number), where, "up", version.split()[0], str(rows), f"{size / (1 << 20):.1f}", slots)
    return table


def queues(values: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]) -> Table:
    """One line per task over all shards that answer."""
    table = Table(title="queues")
    names = ("backlog_rows", "due_rows", "leased_rows", "dead_rows", "results_total", "paused")
    table.add_column("task")
    for name in names:
        table.add_column(name.partition("_")[0], justify="right")
    tasks = sorted({dict(labels)["task"] for labels in values["krablet_backlog_rows"]})
    for task in tasks:
        sums = [
            sum(number for labels, number in values[f"krablet_{name}"].items() if dict(labels)["task"] == task)
            for name in names
        ]
        table.add_row(task, *(f"{one:.0f}" for one in sums[:-1]), "yes" if sums[-1] else "")
    return table


def findings(found: Sequence[Finding], title: str) -> Table | Text:
    """What is not as it should be, the worst first."""
    if not found:
        return Text("all rules are kept", "green")
    table = Table(title=title)
    for heading in ("", "shard", "rule"):
        table.add_column(heading)
    table.add_column("what", overflow="fold")
    table.add_column("repair")
    for one in found:
        shard = "all" if one.shard is None else str(one.shard)
        style = "red" if one.level == "broken" else "yellow"
        safe = "safe" if one.repair is not None or (one.level, one.rule) in _SAFE else ""
        table.add_row(Text(one.level, style), shard, one.rule, one.text, safe)
    return table


_SAFE = {("warning", "map"), ("warning", "tasks")}


def shown(dsn: str) -> str:
    """Where a database is, without its password."""
    known = conninfo_to_dict(dsn)
    return " ".join(f"{key}={known[key]}" for key in ("host", "port", "dbname") if known.get(key))
