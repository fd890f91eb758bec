"""Open a krablet: bring its shards up to date, see that they belong together, set up those that are new."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import uuid4

from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from krea_data.krablet.connection import Shard, make_conninfo
from krea_data.krablet.errors import SchemaError, ShardDown
from krea_data.krablet.migrate import migrate
from krea_data.krablet.moves.clone import clone_tables
from krea_data.krablet.router import BITS, SlotMap, even
from krea_data.krablet.slots import Identity, Member, identity, know_member, set_up

__all__ = ["enter", "open_shards", "with_password", "without_password"]


def open_shards(dsns: Sequence[str], bits: int | None, patience_s: float) -> tuple[dict[int, Shard], SlotMap]:
    """The krablet's shards by number, and its map.

    `dsns` are those of all shards in their order, or of the first ones, since they know the others. Empty databases
    become a new krablet, or, behind the others, further shards without slots. A shard that is down is taken for what
    it is given as; `ShardDown` where none answers, or where nobody knows yet what a shard that is down should be.
    """
    if len(set(dsns)) < len(dsns):
        raise ValueError("a DSN is given twice; every shard is a database or a schema of its own")
    shards = {number: Shard(number, dsn, patience_s) for number, dsn in enumerate(dsns)}
    try:
        return shards, _open(shards, bits)
    except BaseException:
        for shard in shards.values():
            shard.close()
        raise


def enter(shards: Mapping[int, Shard], new: Shard, whole: Identity) -> Identity:
    """Make an empty database a further shard, without slots, and return the krablet as it is then.

    The first shard keeps others from adding one at the same moment. It may be done again after it was cut off.
    """
    found = new.attempt(_examine, patience_s=0)
    if found is not None and (found.krablet, found.number) != (whole.krablet, new.number):
        raise SchemaError(f"{new.name} is shard {found.number} of another krablet; give an empty database or schema")
    entry = Member(without_password(new.dsn), joined=True)

    def settle(source: Connection) -> dict[int, Member]:
        with source.transaction():
            source.execute("lock table member in share row exclusive mode")
            mine, theirs = identity(source), new.attempt(identity)
            assert mine is not None
            if new.number in mine.members and mine.members[new.number].joined:
                if theirs is None or (theirs.krablet, theirs.number) != (whole.krablet, new.number):
                    raise SchemaError(f"somebody else has just added a shard {new.number}; try again")
                return dict(mine.members)
            members = {**whole.members, **mine.members, new.number: entry}
            new.attempt(lambda c: set_up(c, replace(whole, number=new.number, members=members)))
            new.attempt(lambda c: clone_tables(source, c))
            know_member(source, new.number, entry)
        return members

    members = shards[0].attempt(settle)
    for shard in shards.values():
        if shard.number not in (0, new.number):
            _tell(shard, new.number, entry)
    return replace(whole, members=members)


def with_password(dsn: str, known: str) -> str:
    """A member's DSN with the password of a DSN that we were given, if it has one and needs one."""
    password = conninfo_to_dict(known).get("password")
    return make_conninfo(dsn, password=str(password)) if password is not None else dsn


def without_password(dsn: str) -> str:
    """A DSN as it may be written down."""
    return make_conninfo("", **{name: value for name, value in conninfo_to_dict(dsn).items() if name != "password"})


def _open(shards: dict[int, Shard], bits: int | None) -> SlotMap:
    """Examine the shards, set up what is new, get to know the others, and return the map."""
    found: dict[int, Identity | None] = {}
    down: list[ShardDown] = []
    for number, shard in shards.items():
        try:
            found[number] = shard.attempt(_examine, patience_s=0)
        except ShardDown as error:
            down.append(error)
    if not any(known is not None and known.krablet is not None for known in found.values()):
        if down:
            raise down[0]
        found = dict(enumerate(_lay_out(list(shards.values()), found, bits)))
    whole = _whole([known for known in found.values() if known is not None])
    for number in found:
        known = found[number] or shards[number].attempt(identity)  # it may have been set up since we looked
        if known is None:
            whole = _welcome(shards, number, whole)
        else:
            _check(shards[number], known, whole, bits)
    for number in sorted(whole.members.keys() - shards.keys()):
        dsn = with_password(whole.members[number].dsn, shards[0].dsn)
        shards[number] = Shard(number, dsn, shards[0].patience_s)
    if strangers := set(whole.slots.shards) - shards.keys():
        raise SchemaError(f"slots live on shards {sorted(strangers)}; give the DSNs of all shards in their order")
    return whole.slots


def _examine(connection: Connection) -> Identity | None:
    migrate(connection)
    return identity(connection)


def _lay_out(shards: Sequence[Shard], found: dict[int, Identity | None], bits: int | None) -> list[Identity | None]:
    """Make empty databases a krablet; of several processes that do so, the first at shard 0 decides."""
    old = found[0]
    slots = even(len(shards), BITS if bits is None else bits) if old is None else old.slots
    members = {shard.number: Member(without_password(shard.dsn), joined=False) for shard in shards}
    mine = Identity(krablet=uuid4(), number=0, members=members, slots=slots)
    decided = shards[0].attempt(lambda c: _settle(c, mine))
    known = [decided]
    for shard in shards[1:]:
        wanted = replace(decided, number=shard.number)
        known.append(shard.attempt(lambda c, w=wanted: _settle(c, w)))
    for shard in shards:
        for number, member in decided.members.items():
            _tell(shard, number, replace(member, joined=True))
    return [*known]


def _settle(connection: Connection, wanted: Identity) -> Identity:
    set_up(connection, wanted)
    found = identity(connection)
    assert found is not None
    return found


def _whole(known: Sequence[Identity]) -> Identity:
    """The krablet as its shards know it together."""
    whole = next(one for one in known if one.krablet is not None)
    members = dict(whole.members)
    slots = whole.slots
    for other in known:
        for number, member in other.members.items():
            if number not in members or member.joined:
                members[number] = member
        if other.slots.bits == slots.bits:
            slots = slots.newer(other.slots)
    return replace(whole, members=members, slots=slots)


def _welcome(shards: dict[int, Shard], number: int, whole: Identity) -> Identity:
    """Take an empty database in where that is meant, and not where a shard has lost its data."""
    member = whole.members.get(number)
    if member is not None and member.joined:
        raise SchemaError(f"{shards[number].name} is empty and should hold data; restore it, or correct its DSN")
    if member is None and number != len(whole.members):
        raise SchemaError(
            f"{shards[number].name} is not part of the krablet; give the DSNs of all shards in their order"
        )
    return enter(shards, shards[number], whole)


def _check(shard: Shard, found: Identity, whole: Identity, bits: int | None) -> None:
    """See that a shard is what it is taken for."""
    if found.krablet not in (None, whole.krablet):
        raise SchemaError(f"{shard.name} belongs to another krablet; give the DSNs of one krablet's shards")
    if found.number != shard.number:
        raise SchemaError(
            f"{shard.name} was set up as shard {found.number}; give the DSNs of all shards in their order"
        )
    if found.slots.bits != whole.slots.bits or bits not in (None, found.slots.bits):
        raise SchemaError(f"{shard.name} was set up with {found.slots.bits} bits of slots, not {bits}; leave bits out")
    if found.krablet is None:
        shard.attempt(lambda c: set_up(c, replace(whole, number=shard.number)))


def _tell(shard: Shard, number: int, member: Member) -> None:
    """Tell a shard of another one, unless it is down: it will hear of it with the first slot that goes there."""
    try:
        shard.attempt(lambda c: know_member(c, number, member), patience_s=0)
    except ShardDown:
        return
