"""Slots move to other shards while everybody goes on working: `rebalance(krablet)` after `add_shard(krablet, dsn)`.

A slot's rows lie in several tables; all of them go. The source serves the slot until one short transaction on it, which
locks these tables, sends the last changes after, and writes down that the slot lives elsewhere: that row decides, and
whoever finds it may tell the target to serve the slot (`slots.activate`), so it does not matter when the mover dies.
The steps, each of which can be repeated:

1. begin      the source notes every change of the slot's rows (triggers); the target expects it
2. copy       pages in order of id, with the place of the next one in the same transaction
3. catch up   what was noted is written again, until little is left
4. hand over  under locks: the rest, with pauses and priorities; then the slot's new shard, a higher epoch, and
              another version of `shard.dag`. Not while tables or tasks are others than were copied: then 2 again
5. purge      the source deletes its rows

Writers wait for the locks and then find another version, read the map again, and go to the target. Rows of the slot
that lie on the target before, and on the source after step 4, are named by the table `away`: whatever looks for rows
without knowing their ids leaves those slots out (`slots.HERE`). This needs no version and no state of the reader, costs
the scan of a table with a handful of rows, and is right in any snapshot. Readers of several pages or shards make sure
that the map stayed the same from the first to the last, or go on from the last row that they gave out.
"""

from collections.abc import Iterable, Sequence

import psycopg
from psycopg import Connection

from krea_data.krablet.errors import ShardDown
from krea_data.krablet.moves.clone import moving_tables
from krea_data.krablet.moves.moving import PAGE_ROWS, Moved, Mover, Report, Step
from krea_data.krablet.moves.transfer import drop_notes
from krea_data.krablet.router import SlotMap
from krea_data.krablet.shards import SHORT_S, Shards
from krea_data.krablet.table import Krablet

__all__ = ["Moved", "Report", "Step", "add_shard", "cancel", "move", "plan", "rebalance", "resume"]

# The slot stays, in a higher epoch: what its new shard has of it already is of no use for another move.
_CANCEL = """
with gone as (delete from outgoing returning slot),
  forgotten as (delete from change using gone where change.slot = gone.slot)
update slot_map set epoch = epoch + 1 from gone where slot_map.slot = gone.slot"""


def add_shard(krablet: Krablet, dsn: str) -> int:
    """Make an empty database a further shard, without slots yet, and return its number; again does no harm."""
    return krablet.shards.join(dsn)


def rebalance(krablet: Krablet, *, on_progress: Report = lambda _: None) -> int:
    """Give every shard its share of the slots, moving as few as possible; return how many were moved."""
    resume(krablet, on_progress=on_progress)
    steps = plan(_fresh(krablet.shards), krablet.shards.numbers)
    for slot, to in steps:
        move(krablet, [slot], to, on_progress=on_progress, settled=True)
    return len(steps)


def move(
    krablet: Krablet,
    slots: Iterable[int],
    to: int,
    *,
    on_progress: Report = lambda _: None,
    page_rows: int = PAGE_ROWS,
    settled: bool = False,
) -> int:
    """Move slots to a shard and return how many were elsewhere; what an earlier call began is finished first.

    Slots go one after another. A call that was stopped in any way leaves every row served once, and the next one goes
    on where it was.
    """
    shards = krablet.shards
    if not settled:
        resume(krablet, on_progress=on_progress)
    if to not in shards.numbers:
        raise ValueError(f"there is no shard {to}; add_shard makes one, {len(shards.numbers)} are there")
    moved, sources = 0, set[int]()
    try:
        for slot in slots:
            where = _fresh(shards)
            if not 0 <= slot < len(where.shards):
                raise ValueError(f"slot {slot} is not between 0 and {len(where.shards) - 1}")
            source = where.shards[slot]
            if source != to:
                sources.add(source)
                Mover(shards=shards, slot=slot, source=source, to=to, page_rows=page_rows, report=on_progress).run()
                moved += 1
    finally:
        for source in sources:
            _end_notes(shards, source)
    return moved


def resume(krablet: Krablet, *, on_progress: Report = lambda _: None) -> int:
    """Finish what a mover left that was stopped, and return how many slots that were; a shard that is down waits."""
    shards = krablet.shards
    found: set[tuple[int, int, int]] = set()
    for number in shards.numbers:
        try:
            found |= shards.attempt(number, lambda c, n=number: _unfinished(c, n), patience_s=SHORT_S)
        except ShardDown:
            continue
    for slot, source, to in sorted(found):
        Mover(
            shards=shards, slot=slot, source=source, to=to, page_rows=PAGE_ROWS, report=on_progress, resumed=True
        ).run()
    for number in shards.numbers:  # on all: a mover may have been killed between its last slot and the end of its notes
        _end_notes(shards, number)
    return len(found)


def cancel(krablet: Krablet) -> int:
    """Leave slots that are on their way where they are, say because their new shard is gone; return how many."""
    shards, stopped = krablet.shards, 0
    for number in shards.numbers:
        rows = shards.attempt(number, lambda c: c.execute(_CANCEL).rowcount)
        if rows:
            _end_notes(shards, number)
            stopped += rows
    return stopped


def plan(slots: SlotMap, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The fewest (slot, to) after which no shard has two slots more than another."""
    held = {number: slots.held(number) for number in numbers}
    steps: list[tuple[int, int]] = []
    while True:
        least = min(held, key=lambda number: (len(held[number]), number))
        most = max(held, key=lambda number: (len(held[number]), -number))
        if len(held[most]) - len(held[least]) < 2:
            return steps
        slot = held[most].pop()
        held[least].append(slot)
        steps.append((slot, least))


def _fresh(shards: Shards) -> SlotMap:
    """The map as the shards that answer know it now."""
    for number in shards.numbers:
        try:
            shards.attempt(number, lambda c, n=number: shards.reload(n, c), patience_s=SHORT_S)
        except ShardDown:
            continue
    return shards.view.slots


def _unfinished(connection: Connection, number: int) -> set[tuple[int, int, int]]:
    """The moves that a shard knows of as slot, source and target."""
    going = connection.execute("select slot, other from outgoing").fetchall()
    away = connection.execute("select slot, other, incoming from away").fetchall()
    moves = {(slot, number, other) for slot, other in going}
    return moves | {(slot, other, number) if incoming else (slot, number, other) for slot, other, incoming in away}


def _end_notes(shards: Shards, source: int) -> None:
    try:
        shards.attempt(source, lambda c: drop_notes(c, moving_tables(c)), patience_s=SHORT_S)
    except (ShardDown, psycopg.errors.LockNotAvailable):
        return  # they cost a little and do no harm; the next move ends them
