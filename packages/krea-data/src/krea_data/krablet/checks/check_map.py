"""Do the shards agree: who belongs to the krablet, what was migrated, where every slot lives, which tasks there are."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from krea_data.krablet.checks.findings import Finding
from krea_data.krablet.migrate import migrations
from krea_data.krablet.router import SlotMap

__all__ = ["Look", "SlotMap", "compared", "look", "tell", "whole"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one shard says of itself; `sound` if its rows can be looked at."""

    krablet: str | None = None
    number: int | None = None
    bits: int = 0
    members: Mapping[int, str] = field(default_factory=dict)
    slots: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # shard and epoch by slot
    outgoing: Mapping[int, int] = field(default_factory=dict)
    away: Mapping[int, tuple[int, bool]] = field(default_factory=dict)  # other shard, incoming
    applied: Mapping[int, str] = field(default_factory=dict)
    tasks: Mapping[str, Any] = field(default_factory=dict)
    records: Mapping[str, Any] = field(default_factory=dict)
    restoring: bool = False

    @property
    def sound(self) -> bool:
        """Whether the shard was set up, and with this package's migrations."""
        return self.number is not None and not self.unmigrated and len(self.slots) == 1 << self.bits

    @property
    def unmigrated(self) -> list[str]:
        """What is wrong with the migrations."""
        known = {step.number: step for step in migrations()}
        wrong = [f"migration {n} is not of this package" for n in sorted(self.applied.keys() - known.keys())]
        for number, step in known.items():
            if number not in self.applied:
                wrong.append(f"migration {number} ({step.title}) has not been applied; open the krablet once")
            elif self.applied[number] != step.digest:
                wrong.append(f"migration {number} ({step.title}) differs from the one of this package")
        return wrong


def look(connection: Connection) -> Look:
    """Ask a shard, without changing it."""
    if _missing(connection, "migration"):
        return Look()
    applied = dict(connection.execute("select number, digest from migration").fetchall())
    if any(
        _missing(connection, name) for name in ("shard", "slot_map", "member", "away", "outgoing", "task", "record")
    ):
        return Look(applied=applied)
    row = connection.execute("select krablet::text, number, bits from shard").fetchone()
    tasks = connection.execute("select name, to_jsonb(task) from task order by number").fetchall()
    return Look(
        krablet=row[0] if row else None,
        number=row[1] if row else None,
        bits=row[2] if row else 0,
        members=dict(connection.execute("select number, dsn from member where joined").fetchall()),
        slots={s: (n, e) for s, n, e in connection.execute("select slot, shard, epoch from slot_map").fetchall()},
        outgoing=dict(connection.execute("select slot, other from outgoing").fetchall()),
        away={s: (o, i) for s, o, i in connection.execute("select slot, other, incoming from away").fetchall()},
        applied=applied,
        tasks={name: {key: said[key] for key in ("after", "queued", "columns")} for name, said in tasks},
        records=dict(connection.execute("select name, columns from record").fetchall()),
        restoring=not _missing(connection, "restoring"),
    )


def whole(looks: Mapping[int, Look]) -> SlotMap | None:
    """The map as the shards know it together."""
    sound = [one for one in looks.values() if one.sound]
    if not sound or len({one.bits for one in sound}) > 1:
        return None
    best = [max((one.slots[slot][1], one.slots[slot][0]) for one in sound) for slot in range(1 << sound[0].bits)]
    return SlotMap(bits=sound[0].bits, shards=tuple(n for _, n in best), epochs=tuple(e for e, _ in best))


def compared(looks: Mapping[int, Look], down: Set[int]) -> Iterator[Finding]:
    """What the shards that answered do not agree on; those that are down are no strangers."""
    for number, one in looks.items():
        yield from _identity(number, one, looks)
    yield from _map(looks, down)
    yield from _tasks(looks)


def tell(connection: Connection, slots: SlotMap) -> None:
    """Let a shard know the map, as far as that is news about other shards' slots."""
    connection.execute(
        "update slot_map m set shard = g.shard, epoch = g.epoch"
        " from unnest(%s::int[], %s::bigint[]) with ordinality as g (shard, epoch, place)"
        " where m.slot = g.place - 1 and m.epoch < g.epoch and g.shard <> (select number from shard)"
        " and m.shard <> (select number from shard)",
        (list(slots.shards), list(slots.epochs)),
    )


def _identity(number: int, one: Look, looks: Mapping[int, Look]) -> Iterator[Finding]:
    def broken(text: str) -> Finding:
        return Finding(level="broken", rule="shards", shard=number, text=text)

    if one.number is None:
        yield broken("the database is empty, or was never set up as a shard")
        return
    yield from map(broken, one.unmigrated)
    if one.number != number:
        yield broken(f"it was set up as shard {one.number}; give the DSNs of all shards in their order")
    names = {other.krablet for other in looks.values() if other.krablet is not None}
    if len(names) > 1 and number == max(looks):
        yield Finding(level="broken", rule="shards", shard=None, text=f"these are shards of {len(names)} krablets")
    if len(one.slots) != 1 << one.bits:
        yield broken(f"its map has {len(one.slots)} slots, not {1 << one.bits}")
    if one.restoring:
        yield broken("a restore was cut off; call it again with the same dump")


def _map(looks: Mapping[int, Look], down: Set[int]) -> Iterator[Finding]:
    slots = whole(looks)
    if slots is None:
        return
    for slot in range(1 << slots.bits):
        said = {one.slots[slot] for one in looks.values() if one.sound}
        newest = [shard for shard, epoch in said if epoch == slots.epochs[slot]]
        if len(newest) > 1:
            yield _between(f"slot {slot} lives on shards {sorted(newest)} in the same epoch {slots.epochs[slot]}")
    for number in sorted(set(slots.shards) - looks.keys() - down):
        yield _between(f"{len(slots.held(number))} slots live on shard {number}, of which there is no DSN")
    for number, one in looks.items():
        lost = [s for s in slots.held(number) if one.sound and one.slots[s][0] != number and s not in one.away]
        if lost:
            yield _between(
                f"{len(lost)} slots, such as {lost[0]}, were given to shard {number}, which does not know of it"
            )
    for number, one in looks.items():
        if not one.sound:
            continue
        old = [slot for slot, (_, epoch) in one.slots.items() if epoch < slots.epochs[slot] and slot not in one.away]
        if old:
            yield _warning(number, f"it has not heard where {len(old)} slots went, such as {old[0]}", len(old))
        if going := [*one.outgoing, *one.away]:
            yield _warning(
                number, f"{len(going)} slots are on their way, such as {going[0]}; a move goes on or was cut off"
            )


def _tasks(looks: Mapping[int, Look]) -> Iterator[Finding]:
    sound = {number: one for number, one in looks.items() if one.sound}
    for kind in ("tasks", "records"):
        known: dict[str, Any] = {}
        for one in sound.values():
            for name, said in getattr(one, kind).items():
                known.setdefault(name, said)
        for number, one in sound.items():
            mine: Mapping[str, Any] = getattr(one, kind)
            if lacking := [name for name in known if name not in mine]:
                text = f"it lacks the {kind} {', '.join(lacking)}"
                yield Finding(level="warning", rule="tasks", shard=number, text=text, rows=len(lacking))
            for name in mine.keys() & known.keys():
                if mine[name] != known[name]:
                    text = f"its {kind[:-1]} {name} is {mine[name]}, another shard's is {known[name]}"
                    yield Finding(level="broken", rule="tasks", shard=number, text=text)


def _between(text: str) -> Finding:
    return Finding(level="broken", rule="map", shard=None, text=text)


def _warning(shard: int, text: str, rows: int = 0) -> Finding:
    return Finding(level="warning", rule="map", shard=shard, text=text, rows=rows)


def _missing(connection: Connection, table: str) -> bool:
    return connection.execute("select to_regclass(%s)", (table,)).fetchone() == (None,)
