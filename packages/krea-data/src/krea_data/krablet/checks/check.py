"""Look a krablet over: `check(dsns)` says what breaks a rule that all its shards together have to keep.

    shards      every shard answers, belongs to this krablet, and has this package's migrations
    map         the shards agree where every slot lives; no move or restore was cut off
    tasks       the shards have the same tasks and records, with their tables
    place       every row lies in the slot that its id hashes to, on the shard that the map says, and on that one alone
    rows        no result, queued row or dead row is without its row
    queues      a queue holds exactly the rows that its task has yet to answer; bands and tokens include all in use
    server      nothing holds up vacuum, no index is invalid, the settings keep what was acknowledged

It reads all ids unless it is `quick`, in short statements, and may run while everybody works. `repair` does what can
lose nothing; the rest is for a person to decide.
"""

from collections.abc import Callable, Iterator, Sequence

import psycopg

from krea_data.krablet.checks import check_map, check_rows, check_server
from krea_data.krablet.checks.findings import Finding
from krea_data.krablet.connection import Shard
from krea_data.krablet.errors import KrabletError, ShardDown
from krea_data.krablet.moves import move
from krea_data.krablet.moves.clone import clone_tables
from krea_data.krablet.opening import with_password
from krea_data.krablet.table import Krablet

__all__ = ["Finding", "check", "repair"]

OnStep = Callable[[str, int, int], None]
"""Called with what is being looked at, and how much of it is done of how much."""

_PATIENCE_S = 5.0


def check(
    dsns: Sequence[str], *, quick: bool = False, on_step: OnStep = lambda what, done, total: None
) -> list[Finding]:
    """Everything that is not as it should be, the worst first. Changes nothing, not even an older schema."""
    shards = {number: Shard(number, dsn, _PATIENCE_S) for number, dsn in enumerate(dsns)}
    try:
        found = list(_all(shards, quick, on_step))
    finally:
        for shard in shards.values():
            shard.close()
    return sorted(found, key=lambda one: (one.level != "broken", -1 if one.shard is None else one.shard))


def repair(dsns: Sequence[str], findings: Sequence[Finding]) -> list[Finding]:
    """Make right what can be made right, and return what that was; whoever checks again should not see it."""
    done: list[Finding] = []
    with Krablet(dsns, patience_s=_PATIENCE_S) as krablet:
        for one in findings:
            if one.repair is not None and one.shard is not None:
                krablet.shards.attempt(one.shard, one.repair)
                done.append(one)
        if moves := [one for one in findings if one.rule == "map" and one.level == "warning"]:
            move.resume(krablet)
            _agree(krablet)
            done += moves
        if lacking := [one for one in findings if one.rule == "tasks" and one.level == "warning"]:
            _share(krablet)
            done += lacking
    return done


def _all(shards: dict[int, Shard], quick: bool, on_step: OnStep) -> Iterator[Finding]:
    looks: dict[int, check_map.Look] = {}
    waiting = list(shards)
    while waiting:
        number = waiting.pop(0)
        try:
            look = looks[number] = shards[number].attempt(check_map.look)
        except (ShardDown, psycopg.Error) as error:
            yield Finding(level="broken", rule="shards", shard=number, text=_line(error))
            continue
        for other, dsn in look.members.items():
            if other not in shards:
                shards[other] = Shard(other, with_password(dsn, shards[0].dsn), _PATIENCE_S)
                waiting.append(other)
    yield from check_map.compared(looks, shards.keys() - looks.keys())
    whole = check_map.whole(looks)
    for place, (number, look) in enumerate(sorted(looks.items())):
        on_step("shards", place, len(looks))
        if not look.sound or whole is None:
            continue
        try:
            with shards[number].connection() as connection:
                yield from check_server.warnings(connection, number)
                yield from check_rows.broken(connection, number)
                if not quick:
                    yield from check_rows.misplaced(
                        connection,
                        number,
                        whole,
                        lambda done, total, n=number: on_step(f"ids of shard {n}", done, total),
                    )
                    yield from _doubled(connection, number, shards, whole)
        except (KrabletError, psycopg.Error) as error:
            yield Finding(level="broken", rule="shards", shard=number, text=_line(error))
    on_step("shards", len(looks), len(looks))


def _doubled(
    connection: psycopg.Connection, number: int, shards: dict[int, Shard], whole: check_map.SlotMap
) -> Iterator[Finding]:
    """Rows of slots that live elsewhere, by whether they are there too."""
    for table, slot, rows, ids in check_rows.strays(connection):
        owner = whole.shards[slot] if 0 <= slot < len(whole.shards) else None
        where = (
            f"slot {slot}, which lives on shard {owner}" if owner is not None else f"slot {slot}, which does not exist"
        )
        there = 0
        if owner in shards and owner != number and ids:
            there = shards[owner].attempt(lambda c, t=table, s=slot, i=ids: check_rows.known(c, t, s, i))
        also = f"; of the first {len(ids)}, {there} are there too" if ids else ""
        yield Finding(
            level="broken", rule="place", shard=number, rows=rows, text=f"{table} holds {rows} rows of {where}{also}"
        )


def _agree(krablet: Krablet) -> None:
    """Tell every shard the map as it is."""
    for number in krablet.shards.numbers:
        krablet.shards.attempt(number, lambda c, n=number: krablet.shards.reload(n, c))
    slots = krablet.router
    for number in krablet.shards.numbers:
        krablet.shards.attempt(number, lambda c: check_map.tell(c, slots))


def _share(krablet: Krablet) -> None:
    """Give every shard the tasks and records of the others."""
    numbers = krablet.shards.numbers
    for source, target in [(n, numbers[0]) for n in numbers[1:]] + [(numbers[0], n) for n in numbers[1:]]:
        with krablet.shards.connection(source) as giver, krablet.shards.connection(target) as taker:
            clone_tables(giver, taker)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
