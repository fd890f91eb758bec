"""Bring a dump back: `restore(folder, krablet)`, where the krablet's databases are empty and may be more or fewer.

Every file is compared with the manifest before anything is written. Then slot after slot is written in one transaction,
which ends well only if PostgreSQL computes the same sums over what it has stored as the dump did. A call that was cut
off is finished by the same call; until then the shards have a table `restoring`, and the queues are paused.

All that is in the dump comes back as it was: rows, results with their times, dead rows, attempts, leases, priorities,
records, and the marks by which a request that is sent again is known. A lease that nobody holds any more runs out.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from psycopg import Connection, sql

from krea_data.krablet.dag import declare
from krea_data.krablet.dumps.backup import CSV, PLAIN, sum_of
from krea_data.krablet.dumps.folder import Manifest, Part, SlotParts, read_lines, read_manifest, verify
from krea_data.krablet.errors import SchemaError
from krea_data.krablet.migrate import migrations
from krea_data.krablet.moves.clone import moving_tables
from krea_data.krablet.queues.settle import settle_bands, settle_queue
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.records.tables import declare_record
from krea_data.krablet.table import Krablet
from krea_data.krablet.typed import set_columns

__all__ = ["restore"]

OnStep = Callable[[str, int, int], None]
"""Called with what is being done, and how much of it is done of how much."""

_TOKENS = 1_000_000  # between the last token of the dump and the first new one, as after a move
_INSERT = """
insert into {table} ({columns}) select {picked} from line, jsonb_populate_record(null::{table}, line.line) as r"""


def restore(
    folder: Path, krablet: Krablet, *, on_step: OnStep = lambda what, done, total: None, jobs: int = 2
) -> Manifest:
    """Write a dump into a krablet that holds nothing, and return what it held.

    ValueError for a dump that is damaged or does not fit, and for a krablet that holds anything else; nothing has been
    written then.
    """
    manifest = read_manifest(folder)
    _check(krablet, manifest)
    verify(folder, manifest, lambda done, total: on_step("read", done, total))
    done: set[int] = set()
    for number in krablet.shards.numbers:
        done |= krablet.shards.attempt(number, lambda c: _prepare(c, manifest))
    todo = [slot for slot in manifest.slots if slot not in done]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for count, _ in enumerate(pool.map(lambda slot: _write_slot(krablet, folder, manifest, slot), todo), 1):
                on_step("written", len(done) + count, len(manifest.slots))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for number in krablet.shards.numbers:
        krablet.shards.declare(number, lambda c: _finish(c, manifest))
    return manifest


def _check(krablet: Krablet, manifest: Manifest) -> None:
    """ValueError unless the krablet is empty, or has a part of this dump, and can hold it."""
    if krablet.router.bits != manifest.bits:
        raise ValueError(
            f"the dump has 2 ** {manifest.bits} slots, the krablet 2 ** {krablet.router.bits};"
            f" restore into empty databases, or make the krablet with {manifest.bits} bits"
        )
    if (newest := max(step.number for step in migrations())) < manifest.migration:
        raise ValueError(f"the dump has migration {manifest.migration}, this package ends at {newest}; use a newer one")
    for number in krablet.shards.numbers:
        begun, holds = krablet.shards.attempt(number, _state)
        if begun not in (None, manifest.name):
            raise ValueError(f"{krablet.shards.name(number)} holds a part of another dump; use empty databases")
        if begun is None and holds:
            raise ValueError(f"{krablet.shards.name(number)} holds {holds} already; use empty databases")


def _state(connection: Connection) -> tuple[str | None, str]:
    """The dump that is being restored here, and what the shard holds."""
    begun: str | None = None
    if connection.execute("select to_regclass('restoring')").fetchone() != (None,):
        row = connection.execute("select dump from restoring").fetchone()
        begun = None if row is None else row[0]
    for what, table in (("rows", "images"), ("tasks", "task"), ("records", "record")):
        if connection.execute(sql.SQL("select from {} limit 1").format(sql.Identifier(table))).rowcount:
            return begun, what
    return begun, ""


def _prepare(connection: Connection, manifest: Manifest) -> set[int]:
    """Make all tables, with queues that give nothing yet; return the slots that an earlier call wrote."""
    with connection.transaction():
        connection.execute("create table if not exists restoring (dump text primary key, done int[] not null)")
        connection.execute("insert into restoring values (%s, '{}') on conflict do nothing", (manifest.name,))
        for task in manifest.tasks:
            declare(connection, {}, [task["name"]])  # one by one, so that they keep their order
        queued = {task["name"]: tuple(task["after"]) for task in manifest.tasks if task["queued"]}
        declare(connection, queued)
        for task in manifest.tasks:
            set_columns(connection, task["name"], task["columns"], task["indexed"])
        for name, columns in manifest.records:
            declare_record(connection, Record(name, tuple(Column(*column) for column in columns)))
        connection.execute("update task set paused = true where queued")
        connection.execute("update shard set dag = dag + 1")
        (done,) = connection.execute("select done from restoring").fetchone() or ([],)
    return set(done)


def _write_slot(krablet: Krablet, folder: Path, manifest: Manifest, slot: int) -> None:
    number = krablet.router.shards[slot]
    krablet.shards.attempt(number, lambda c: _write(c, folder, manifest, slot))


def _write(connection: Connection, folder: Path, manifest: Manifest, slot: int) -> None:
    """All rows of a slot in one transaction; again does nothing."""
    held = manifest.slots[slot]
    with connection.transaction():
        if connection.execute("select from restoring where %s = any(done) for update", (slot,)).rowcount:
            return
        connection.execute(PLAIN)
        written = {shape.name: shape.written for shape in moving_tables(connection)}
        for table, part in held.parts.items():
            if not set(part.columns) <= set(written.get(table, ())):
                raise SchemaError(
                    f"this package has no place for {table} as it was dumped; use the version of the dump"
                )
            _fill(connection, folder, table, slot, part)
        _settle(connection, manifest.tasks, held, slot)
        connection.execute("update restoring set done = done || %s", (slot,))


def _fill(connection: Connection, folder: Path, table: str, slot: int, part: Part) -> None:
    """The rows of one table, with proof that they are what was dumped."""
    connection.execute("create temporary table if not exists line (line jsonb) on commit delete rows")
    with connection.cursor() as cursor:
        with cursor.copy(f"copy line from stdin {CSV}".encode()) as copy:
            for block in read_lines(folder, table, slot, part):
                copy.write(block)
    columns = sql.SQL(", ").join(map(sql.Identifier, part.columns))
    picked = sql.SQL(", ").join(sql.Identifier("r", name) for name in part.columns)
    connection.execute(sql.SQL(_INSERT).format(table=sql.Identifier(table), columns=columns, picked=picked))
    connection.execute("truncate line")
    if (found := sum_of(connection, table, part.columns, slot)) != (part.rows, part.sum):
        raise SchemaError(
            f"slot {slot} of {table} came out as {found[0]} rows with another sum than the {part.rows} of the dump;"
            " nothing of the slot was kept; is this the same version of PostgreSQL?"
        )


def _settle(connection: Connection, tasks: Sequence[Mapping[str, Any]], held: SlotParts, slot: int) -> None:
    """Bring queues in line that the slot's shard did not have yet, or had with another `after`, when it was dumped."""
    for task in tasks:
        if task["queued"] and held.queues.get(task["name"]) != task["after"]:
            settle_queue(connection, task["name"], task["after"], slot=slot)


def _finish(connection: Connection, manifest: Manifest) -> None:
    """Open the queues, as far as they were."""
    with connection.transaction():
        connection.execute("select from shard for update")
        for task in manifest.tasks:
            if task["queued"]:
                connection.execute("update task set paused = %s where name = %s", (task["paused"], task["name"]))
                settle_bands(connection, task["name"])
        connection.execute("select setval('token', greatest(last_value, %s)) from token", (manifest.token + _TOKENS,))
        connection.execute("update shard set dag = dag + 1")
        connection.execute("drop table if exists restoring")
    connection.execute("analyze")
