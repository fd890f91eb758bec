"""What a shard knows of its krablet: which shard it is, who the others are, where every slot lives.

No shard is asked on the way to a row: every process keeps the map, and every statement says for which version of
`shard.dag` it was written. That number also counts the changes of a shard's slots, so whoever comes with an old map is
told so by the very statement that would have gone wrong, and reads the map again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from psycopg import Connection

from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.router import SlotMap

__all__ = [
    "HERE",
    "Identity",
    "Member",
    "activate",
    "arrivals",
    "check_current",
    "identity",
    "know_member",
    "set_up",
    "slots_of",
]

# SQL for whatever looks for rows without knowing their ids: the condition that a row's slot is served by this shard.
HERE = "slot not in (select slot from away)"

_ACTIVATE = """
with mine as (
  delete from away a using unnest(%(slots)s::int[], %(epochs)s::bigint[]) as given (slot, epoch)
  where a.slot = given.slot and a.epoch = given.epoch and a.incoming returning a.slot, a.epoch
), known as (
  insert into slot_map (slot, shard, epoch) select mine.slot, shard.number, mine.epoch from mine, shard
  on conflict (slot) do update set shard = excluded.shard, epoch = excluded.epoch
)
update shard set dag = dag + 1 where exists (select from mine)"""


@dataclass(frozen=True, slots=True)
class Member:
    """A shard of the krablet, as the others know it."""

    dsn: str
    joined: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a shard says of itself; `krablet` is None for one that was set up before krablets had names."""

    krablet: UUID | None
    number: int
    members: Mapping[int, Member]
    slots: SlotMap


def identity(connection: Connection) -> Identity | None:
    """What the shard says of itself, or None where it has not been set up."""
    row = connection.execute("select krablet, number, bits from shard").fetchone()
    if row is None:
        return None
    found = connection.execute("select number, dsn, joined from member").fetchall()
    members = {number: Member(dsn, joined) for number, dsn, joined in found}
    return Identity(krablet=row[0], number=row[1], members=members, slots=slots_of(connection, row[2]))


def slots_of(connection: Connection, bits: int) -> SlotMap:
    """The map as the shard knows it."""
    rows = connection.execute("select shard, epoch from slot_map order by slot").fetchall()
    return SlotMap(bits=bits, shards=tuple(row[0] for row in rows), epochs=tuple(row[1] for row in rows))


def set_up(connection: Connection, mine: Identity) -> None:
    """Tell a new shard who it is; one that knows already stays what it is."""
    with connection.transaction():
        new = connection.execute(
            "insert into shard (number, bits, krablet) values (%s, %s, %s)"
            " on conflict (only_row) do update set krablet = excluded.krablet where shard.krablet is null",
            (mine.number, mine.slots.bits, mine.krablet),
        )
        if not new.rowcount:
            return
        connection.execute(
            "insert into slot_map select ordinality - 1, shard, epoch"
            " from unnest(%s::int[], %s::bigint[]) with ordinality as m (shard, epoch) on conflict do nothing",
            (list(mine.slots.shards), list(mine.slots.epochs)),
        )
        for number, member in sorted(mine.members.items()):
            know_member(connection, number, member)


def know_member(connection: Connection, number: int, member: Member) -> None:
    """Tell a shard of another one; the DSN with which that joined stays."""
    connection.execute(
        "insert into member (number, dsn, joined) values (%s, %s, %s)"
        " on conflict (number) do update set dsn = excluded.dsn, joined = true"
        " where excluded.joined and not member.joined",
        (number, member.dsn, member.joined),
    )


def activate(connection: Connection, epochs: Mapping[int, int]) -> None:
    """Let a shard serve slots that their source gave to it in these epochs; anybody may who knows that it did."""
    given = {"slots": list(epochs), "epochs": list(epochs.values())}
    connection.execute(_ACTIVATE, given)


def arrivals(connection: Connection) -> dict[int, int]:
    """The slots on their way to this shard, and the epochs in which they will be its own."""
    return dict(connection.execute("select slot, epoch from away where incoming").fetchall())


def check_current(connection: Connection, dag: Dag) -> None:
    """`StaleDag` unless the shard's DAG and slots are still those; for answers without a row that could tell."""
    if connection.execute("select dag from shard").fetchone() != (dag.version,):
        raise StaleDag
