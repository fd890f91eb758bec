"""Dump a krablet into a folder, slot by slot: `dump(krablet, folder)`. `restore` brings it back, on any shards.

Nothing refers from one slot to another: a row, its results, its places in queues, its failures and the marks of the
requests that wrote it all lie in its slot. So the rows of one slot are read in one transaction as of one moment, and
different slots as of different moments while work goes on; a row is never torn. What is in the dump is what its shard
had committed when its slot's turn came.

The folder has its name when it is whole. Until then it is called `<folder>.partial`, and the same call goes on with the
slots that it lacks. A map (`pluck`) in progress is not dumped: its results are, and a new map goes on from those.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from psycopg import Connection, sql

from krea_data.krablet.dag import load
from krea_data.krablet.dumps.folder import (
    Manifest,
    SlotParts,
    path_of,
    slot_parts,
    sync_folder,
    write_lines,
    write_manifest,
    write_whole,
)
from krea_data.krablet.errors import SchemaError
from krea_data.krablet.moves.clone import Shape, moving_tables
from krea_data.krablet.table import Krablet

__all__ = ["CSV", "PLAIN", "dump", "lines_of", "sum_of"]

OnSlots = Callable[[int, int], None]
"""Called with the slots that are done and all slots."""

_TRIES = 50  # for a slot that moves again and again
# The text of a row must not depend on a session's settings.
PLAIN = """
select set_config('timezone', 'UTC', true), set_config('extra_float_digits', '1', true),
  set_config('bytea_output', 'hex', true), set_config('datestyle', 'ISO', true)"""
# Quote and delimiter are characters that JSON never holds as they are, so the lines are the JSON itself.
CSV = "(format csv, quote e'\\x01', delimiter e'\\x02')"
_SUM = """
select count(*), coalesce(sum(('x' || left(md5(line::text), 16))::bit(64)::bigint), 0)
from ({lines}) as found (line)"""


class _Moved(Exception):  # noqa: N818 - never seen outside of this file
    """The slot lives elsewhere."""


def dump(krablet: Krablet, folder: Path, *, on_slots: OnSlots = lambda done, total: None, jobs: int = 2) -> Manifest:
    """Write all rows into a new folder and return what it holds; ValueError if the folder is there already.

    A call that was cut off is finished by the same call. `jobs` slots are read at a time.
    """
    folder = folder.absolute()
    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another folder, or move it away")
    work = folder.with_name(folder.name + ".partial")
    work.mkdir(parents=True, exist_ok=True)
    plan = _begin(krablet, work)
    done = _finished(work)
    todo = [slot for slot in range(1 << krablet.router.bits) if slot not in done]
    on_slots(len(done), len(done) + len(todo))
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for slot, held in pool.map(lambda slot: (slot, _dump_slot(krablet, slot, work)), todo):
                done[slot] = held
                on_slots(len(done), 1 << krablet.router.bits)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    manifest = _manifest(krablet, plan, done)
    write_manifest(work, manifest)
    (work / "plan.json").unlink()
    shutil.rmtree(work / "slots")
    work.rename(folder)
    sync_folder(folder.parent)
    return manifest


def lines_of(table: str, columns: Sequence[str], key: Sequence[str], slot: int) -> sql.Composed:
    """SQL for the rows of a table in a slot as JSON, in order of their key."""
    order = sql.SQL(" order by ") + sql.SQL(", ").join(map(sql.Identifier, key)) if key else sql.SQL("")
    return sql.SQL("select to_jsonb(t) from (select {columns} from {table} where slot = {slot}{order}) as t").format(
        columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
        table=sql.Identifier(table),
        slot=sql.Literal(slot),
        order=order,
    )


def sum_of(connection: Connection, table: str, columns: Sequence[str], slot: int) -> tuple[int, int]:
    """How many rows of a table are in a slot, and their sum as in `dumps.Part`; inside a transaction with `PLAIN`."""
    found = connection.execute(sql.SQL(_SUM).format(lines=lines_of(table, columns, (), slot))).fetchone()
    rows, total = found or (0, 0)
    return int(rows), int(total)


def _begin(krablet: Krablet, work: Path) -> dict[str, Any]:
    """What stays the same over all slots; ValueError where the folder holds a part of another dump."""
    found = krablet.guarded(krablet.shards.numbers[0], lambda c, _: _identity(c))
    plan = {**found, "began_at": _now()}
    path = work / "plan.json"
    if path.exists():
        old = json.loads(path.read_text("utf-8"))
        if {key: old.get(key) for key in found} != found:
            raise ValueError(f"{work} is a part of another dump; remove it, or choose another folder")
        return old
    (work / "slots").mkdir(exist_ok=True)
    write_whole(path, plan)
    return plan


def _identity(connection: Connection) -> dict[str, Any]:
    row = connection.execute("select krablet::text, bits, (select max(number) from migration) from shard").fetchone()
    assert row is not None
    return {"krablet": row[0], "bits": row[1], "migration": row[2]}


def _finished(work: Path) -> dict[int, SlotParts]:
    """The slots that an earlier call has dumped."""
    found = {int(path.stem): json.loads(path.read_text("utf-8")) for path in (work / "slots").glob("*.json")}
    return {slot: slot_parts(held) for slot, held in found.items()}


def _dump_slot(krablet: Krablet, slot: int, work: Path) -> SlotParts:
    for _ in range(_TRIES):
        number = krablet.router.shards[slot]
        try:
            held = krablet.shards.attempt(number, lambda c, n=number: _read_slot(c, n, slot, work))
        except _Moved:
            krablet.shards.attempt(number, lambda c, n=number: krablet.shards.reload(n, c))
            continue
        write_whole(work / "slots" / f"{slot}.json", asdict(held))
        return held
    raise SchemaError(f"slot {slot} moves all the time; dump again when the moves have ended")


def _read_slot(connection: Connection, number: int, slot: int, work: Path) -> SlotParts:
    """All rows of a slot as of one moment."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        connection.execute(PLAIN)
        mine = connection.execute(
            "select from slot_map where slot = %(slot)s and shard = %(number)s"
            " and %(slot)s not in (select slot from away)",
            {"slot": slot, "number": number},
        )
        if not mine.rowcount:
            raise _Moved
        dag = load(connection)
        queues = {task: list(dag.after[task]) for task in sorted(dag.queued)}
        parts = {}
        for shape in _filled(connection, slot):
            part = write_lines(path_of(work, shape.name, slot), shape.written, _rows(connection, shape, slot))
            if part is not None:
                parts[shape.name] = part
    return SlotParts(parts=parts, queues=queues)


def _filled(connection: Connection, slot: int) -> list[Shape]:
    """The tables that have rows in the slot."""
    found = moving_tables(connection)
    one = "select {name} where exists (select from {table} where slot = {slot})"
    asked = [
        sql.SQL(one).format(name=sql.Literal(shape.name), table=sql.Identifier(shape.name), slot=sql.Literal(slot))
        for shape in found
    ]
    names = {name for (name,) in connection.execute(sql.SQL(" union all ").join(asked)).fetchall()}
    return [shape for shape in found if shape.name in names]


def _rows(connection: Connection, shape: Shape, slot: int) -> Iterator[bytes]:
    lines = lines_of(shape.name, shape.written, shape.key, slot)
    with connection.cursor() as cursor:
        with cursor.copy(sql.SQL("copy ({}) to stdout " + CSV).format(lines)) as copy:
            for data in copy:
                yield bytes(data)


def _manifest(krablet: Krablet, plan: dict[str, Any], slots: dict[int, SlotParts]) -> Manifest:
    """What every shard says in the end; it has heard of every task that a dumped row can have."""
    tasks: dict[str, dict[str, Any]] = {}
    records: dict[str, list[Any]] = {}
    token = 0
    for number in krablet.shards.numbers:
        said = krablet.guarded(number, lambda c, _: _said(c))
        if said["migration"] != plan["migration"]:
            raise SchemaError("the schema was migrated during the dump; remove what there is of it and dump again")
        tasks = {**said["tasks"], **tasks}
        for name, found in said["records"].items():
            records[name] = max(found, records.get(name, []), key=len)  # columns are only ever added
        token = max(token, said["token"])
    return Manifest(
        **plan,
        shards=len(krablet.shards.numbers),
        token=token,
        ended_at=_now(),
        tasks=list(tasks.values()),
        records=[[name, found] for name, found in records.items()],
        slots=dict(sorted(slots.items())),
    )


def _said(connection: Connection) -> dict[str, Any]:
    """A shard's tasks and records by name, its last token, and how far it has migrated."""
    tasks = connection.execute(
        "select to_jsonb(t) from (select name, after, queued, paused, columns, indexed from task order by number) as t"
    )
    (token, migration) = connection.execute(
        "select last_value, (select max(number) from migration) from token"
    ).fetchone() or (0, 0)
    return {
        "tasks": {row["name"]: row for (row,) in tasks.fetchall()},
        "records": dict(connection.execute("select name, columns from record order by name").fetchall()),
        "token": token,
        "migration": migration,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
