"""What an operator does with queues: pause, resume, give rows priority, lengthen leases, ask for the backlog.

All of it lasts: it is kept on the shards, and every process obeys from its next claim on, because a change of it counts
as a change of the DAG, which every claim compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from psycopg import Connection

from krea_data.checks import check_lease, check_name, check_priority
from krea_data.krablet.dag import Dag
from krea_data.krablet.queues import counts
from krea_data.krablet.queues.bands import CHUNK_ROWS, bands_of, raise_rows, raise_source
from krea_data.krablet.queues.claim import Lease, extend_rows
from krea_data.krablet.slots import check_current
from krea_data.rows import Claim

if TYPE_CHECKING:
    from krea_data.krablet.table import Krablet

__all__ = ["backlog", "extend", "pause", "paused", "prioritise", "prioritise_source", "resume"]

_PAUSE = "update task set paused = %(paused)s where name = %(task)s and queued and paused <> %(paused)s"


def pause(krablet: Krablet, task: str, shards: Sequence[int] | None = None) -> None:
    """Give no more claims of this task, on these shards or on all; rows keep arriving, leases go on to their ends."""
    _set_paused(krablet, task, shards, paused=True)


def resume(krablet: Krablet, task: str, shards: Sequence[int] | None = None) -> None:
    """Undo `pause`, on these shards or on all."""
    _set_paused(krablet, task, shards, paused=False)


def paused(krablet: Krablet, task: str) -> list[int]:
    """The shards where the task is paused."""
    return [number for number in _known(krablet, task, None) if _is_paused(krablet, number, task)]


def prioritise(krablet: Krablet, task: str, ids: Iterable[str], priority: int) -> int:
    """Let these rows of the task's queue be claimed before all of a lower priority (0 is that of all others).

    Return how many have another priority now; ids that are not in the queue are passed over. A row keeps its priority
    over failures and lost leases, until it is answered or set aside.
    """
    check_priority(priority)
    check_name(task)
    wanted = list(dict.fromkeys(ids))
    slot = krablet.router.slot

    def change(connection: Connection, dag: Dag, part: list[str]) -> int:
        if task not in dag.queued:
            check_current(connection, dag)
            return 0
        return raise_rows(connection, dag, task, priority, [(slot(row_id), row_id) for row_id in part])

    changed = 0
    for start in range(0, len(wanted), CHUNK_ROWS):
        changed += sum(krablet.routed(wanted[start : start + CHUNK_ROWS], str, change))
    _heed(krablet, task)
    return changed


def prioritise_source(krablet: Krablet, task: str, source: str, priority: int) -> int:
    """`prioritise` for all rows in the queue whose ids are "<source>/..."; walks through the queue."""
    check_priority(priority)
    changed = 0
    for number in _known(krablet, task, None):
        while some := krablet.guarded(number, lambda c, d: raise_source(c, d, task, priority, source)):
            changed += some
    _heed(krablet, task)
    return changed


def extend(krablet: Krablet, task: str, claims: Iterable[Claim], lease_s: float) -> int:
    """Let claims that are still held last `lease_s` from now, if that is longer; return how many are still held."""
    check_lease(lease_s)
    check_name(task)
    held = [Lease(slot=krablet.router.slot(claim.id), id=claim.id, token=claim.token) for claim in claims]

    def lengthen(connection: Connection, dag: Dag, part: list[Lease]) -> int:
        found = extend_rows(connection, task, part, lease_s) if task in dag.queued else 0
        check_current(connection, dag)  # a row that has moved meanwhile is held where it is now
        return found

    return sum(krablet.routed(held, lambda lease: lease.id, lengthen))


def backlog(krablet: Krablet, task: str) -> int:
    """About how many rows the task has yet to answer: exact up to 10,000 a shard, from statistics beyond."""
    return sum(
        krablet.guarded(number, lambda c, _: counts.backlog_rows(c, task)) for number in _known(krablet, task, None)
    )


def _known(krablet: Krablet, task: str, shards: Sequence[int] | None) -> list[int]:
    """The shards, among these, where the task has a queue; ValueError where there is no such shard."""
    numbers = krablet.shards.numbers
    for number in shards or ():
        if number not in numbers:
            raise ValueError(f"there is no shard {number}; the krablet has the shards 0 to {numbers[-1]}")
    check_name(task)
    return [number for number in (numbers if shards is None else shards) if krablet.knows(number, task)]


def _set_paused(krablet: Krablet, task: str, shards: Sequence[int] | None, *, paused: bool) -> None:
    known = _known(krablet, task, shards)
    if not known:
        raise ValueError(f"there is no queue of a task {task!r}; register the task first, or look at its name")
    done: set[int] = set()
    while left := set(known) - done:
        for number in left:
            krablet.guarded(number, lambda c, d: _pause_shard(c, d, task, paused))
        done |= left
        known = _known(krablet, task, shards)  # a shard that was told to have given slots away names where they went


def _pause_shard(connection: Connection, dag: Dag, task: str, paused: bool) -> None:
    with connection.transaction():
        connection.execute("select from shard for update")
        check_current(connection, dag)
        if connection.execute(_PAUSE, {"paused": paused, "task": task}).rowcount:
            connection.execute("update shard set dag = dag + 1")


def _is_paused(krablet: Krablet, number: int, task: str) -> bool:
    statement = "select paused from task where name = %s"
    row = krablet.guarded(number, lambda c, _: c.execute(statement, (task,)).fetchone())
    return row is not None and row[0]


def _heed(krablet: Krablet, task: str) -> None:
    """Let this process's next claim know of new priorities on all shards."""

    def note(number: int, connection: Connection, dag: Dag) -> None:
        check_current(connection, dag)
        krablet.floor(number, task).bands = bands_of(dag, task)

    for number in krablet.shards.numbers:
        krablet.guarded(number, lambda c, d, n=number: note(n, c, d))
