"""Marks of producers: which requests are stored, told by the transaction that stores them.

A producer numbers its requests. `floor` says that it will never again send one below; above it every stored request is
noted. All rows of a request that live on one shard are stored in one transaction, so one mark is enough for a shard;
only slots that have moved, and whose marks must go with them, have marks of their own. A request whose mark is there
already ends the whole transaction with `MARKED`; a shard that has another DAG or other slots than the caller believes
ends it with `STALE`.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID

from psycopg import Connection

from krea_data.krablet.arrays import Ints, Texts

__all__ = ["MARKED", "STALE", "Mark", "mark_values", "marking", "note_refusals", "prune_marks", "refusals", "stored"]

MARKED, STALE = "KR001", "KR002"

Mark: TypeAlias = tuple[UUID, int, int, Collection[int]]  # producer, number of the request, floor, slots

# Usually as many of the oldest numbers have fallen below the floor as new ones come.
_NOTE = """
  on conflict {key} do update
    set floor = greatest(m.floor, excluded.floor), at = now(), seqs = case
      when m.seqs[cardinality(m.seqs)] < excluded.seqs[1] and m.seqs[cardinality(excluded.seqs)] < excluded.floor
        then m.seqs[1 + cardinality(excluded.seqs):] || excluded.seqs
      else array(select seq from unnest(m.seqs || excluded.seqs) as u (seq) where seq >= excluded.floor order by 1) end
    where not m.seqs && excluded.seqs and m.floor <= excluded.seqs[1]
  returning 1"""
_MARK = f"""
with given as materialized (
  select producer::uuid, seq, floor, slots::int[]
  from unnest(%(producers)s, %(seqs)s, %(floors)s, %(slots_of)s) as g (producer, seq, floor, slots)
), whole as materialized (
  select producer, least(max(floor), min(seq)), array_agg(seq order by seq) from given
  where exists (select from unnest(slots) as s where s not in (select slot from tracked_slot)) group by producer
), parts as materialized (
  select s, producer, least(max(floor), min(seq)), array_agg(seq order by seq) from given, unnest(slots) as s
  where s in (select slot from tracked_slot) group by s, producer
), marked as (
  insert into producer_mark as m (producer, floor, seqs) select * from whole order by 1
  {_NOTE.format(key="(producer)")}
), marked_parts as (
  insert into slot_mark as m (slot, producer, floor, seqs) select * from parts order by 1, 2
  {_NOTE.format(key="(slot, producer)")}
)"""
_DEMAND = f"""
select demand((select dag from shard) = %(dag)s, '{STALE}'),
  demand((select count(*) from marked) = (select count(*) from whole)
    and (select count(*) from marked_parts) = (select count(*) from parts), '{MARKED}')"""


@lru_cache(maxsize=1000)
def marking(work: bytes = b"") -> bytes:
    """The statement that notes requests under the condition that none of them is noted, then does `work`.

    One statement is one transaction, and a third of the way that several statements go.
    """
    return _MARK.encode() + (b", done as (" + work + b")" if work else b"") + _DEMAND.encode()


def mark_values(marks: Sequence[Mark], dag: int) -> dict[str, Any]:
    """The values that `marking` takes besides those of its work."""
    producers, seqs, floors, slots = zip(*marks, strict=True)
    return {
        "producers": Texts([producer.hex for producer in producers]),
        "seqs": Ints(seqs),
        "floors": Ints(floors),
        "slots_of": Texts(["{" + ",".join(map(str, some)) + "}" for some in slots]),
        "dag": dag,
    }


def stored(connection: Connection, marks: Sequence[Mark]) -> set[tuple[int, UUID, int]]:
    """Those of the requests that are noted already, as (slot, producer, number)."""
    given = ([producer for producer, *_ in marks],)
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")  # all as of one moment
        tracked = {slot for (slot,) in connection.execute("select slot from tracked_slot")}
        rows = connection.execute("select null, * from producer_mark where producer = any(%s)", given).fetchall()
        rows += connection.execute("select * from slot_mark where producer = any(%s)", given).fetchall()
    known = {(slot, producer): (floor, frozenset(seqs)) for slot, producer, floor, seqs, _ in rows}
    found: set[tuple[int, UUID, int]] = set()
    for producer, seq, _, slots in marks:
        for slot in slots:
            floor, seqs = known.get((slot if slot in tracked else None, producer), (0, frozenset()))
            if seq < floor or seq in seqs:
                found.add((slot, producer, seq))
    return found


def note_refusals(connection: Connection, found: Iterable[tuple[int, UUID, int, str, str]]) -> None:
    """Remember refused rows as (slot, producer, number, id, message), in the transaction of the request's mark."""
    slots, producers, seqs, ids, messages = zip(*found, strict=True)
    connection.execute(
        "insert into producer_refusal (slot, producer, seq, id, message)"
        " select slot, producer::uuid, seq, id, message"
        " from unnest(%s, %s, %s, %s, %s) as g (slot, producer, seq, id, message)",
        (Ints(slots), Texts([p.hex for p in producers]), Ints(seqs), Texts(ids), Texts(messages)),
    )


def refusals(connection: Connection, slots: Iterable[int], producer: UUID, seq: int) -> dict[str, str]:
    """What was refused of a stored request in these slots, by id."""
    rows = connection.execute(
        "select id, message from producer_refusal where producer = %s and seq = %s and slot = any(%s)",
        (producer, seq, Ints(list(slots))),
    )
    return dict(rows.fetchall())


def prune_marks(connection: Connection, age_s: float) -> int:
    """Forget producers that stored nothing for so long, and return how many marks that were."""
    connection.execute("delete from producer_refusal where at < now() - make_interval(secs => %s)", (age_s,))
    return sum(
        connection.execute(statement, (age_s,)).rowcount
        for statement in (
            "delete from producer_mark where at < now() - make_interval(secs => %s)",
            "delete from slot_mark where at < now() - make_interval(secs => %s)",
        )
    )
