"""The statements of the index, each for one shard, and how work is sent to the shards of its slots.

Every statement that writes does so only under the version of `shard.dag` that its rows were split by, as all of the
krablet's do: after a slot has moved it writes nothing, and is sent again where the slot is now. Tables are locked in
the order of their names, in which a mover locks them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection, Cursor

from krea_data.krablet import Krablet
from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.shards import StaleMap
from krea_data.krablet.slots import check_current

__all__ = [
    "Found",
    "Part",
    "Work",
    "due",
    "forget",
    "narrow",
    "note",
    "place",
    "routed",
    "search",
    "settled",
    "standing",
    "walk",
]

_PLACE: LiteralString = """
with given as materialized (
  select g.slot, g.id, c.node, c.code, c.mean from unnest(%(places)s, %(slots)s, %(ids)s) as g (place, slot, id)
  join unnest(%(nodes)s::uuid[], %(codes)s::bit(186)[], %(means)s) with ordinality as c (node, code, mean, place)
    on c.place = g.place + 1
), placed as (
  insert into dedup_band (slot, id, node, code, mean) select slot, id, node, code, mean from given
  where (select dag from shard) = %(dag)s order by slot, id, node on conflict do nothing
) select dag from shard"""
# A look-up is a step in the index of its own (`offset 0`), whatever the planner believes of the table's size.
_SEARCH: LiteralString = """
select g.place, replace(b.node::text, '-', ''), bit_count((b.code # a.code) & {shape}),
  bit_count((b.code # a.code) & {colour}), b.mean
from unnest(%(places)s, %(slots)s, %(ids)s) as g (place, slot, id)
join unnest(%(nodes)s::uuid[], %(codes)s::bit(186)[]) with ordinality as a (node, code, place) on a.place = g.place + 1
cross join lateral (select node, code, mean from dedup_band where slot = g.slot and id = g.id offset 0) as b
where b.node <> a.node and bit_count((b.code # a.code) & {shape}) <= %(phash)s
  and bit_count((b.code # a.code) & {colour}) <= %(tint)s"""
_SHAPE, _COLOUR = "B'" + "1" * 144 + "0" * 42 + "'", "B'" + "0" * 144 + "1" * 42 + "'"
_NOTE: LiteralString = """
with same as materialized (select from shard where dag = %(dag)s), code as (
  insert into dedup_code (slot, id, code, mean, vague, phash_limit, colour_limit, mean_limit)
  select slot, id, code::bit(186), mean, vague = 1, %(phash)s, %(tint)s, %(shade)s
  from unnest(%(slots)s, %(nodes)s, %(codes)s, %(means)s, %(vagues)s) as g (slot, id, code, mean, vague)
  where exists (select from same) order by slot, id
  on conflict (slot, id) do update set phash_limit = excluded.phash_limit, colour_limit = excluded.colour_limit,
    mean_limit = excluded.mean_limit
), due as (
  insert into dedup_due (slot, id, stage, mark)
  select slot, id, stage, gen_random_uuid()
  from unnest(%(due_slots)s, %(due)s) as g (slot, id), unnest(%(stages)s) as s (stage)
  where exists (select from same) order by slot, id, stage
  on conflict (slot, id, stage) do update set mark = excluded.mark
), link as (
  insert into dedup_link (slot, id, kind, other, phash, colour, mean, similarity, rule)
  select slot, id, kind, other, phash, colour, mean, similarity::double precision, rule
  from unnest(%(link_slots)s, %(lefts)s, %(kinds)s, %(rights)s, %(phashes)s::int[], %(colours)s::int[],
    %(shades)s::int[], %(similarities)s, %(rules)s) as g (slot, id, kind, other, phash, colour, mean, similarity, rule)
  where exists (select from same) order by slot, id, kind, other
  on conflict (slot, id, kind, other) do update set similarity = excluded.similarity, rule = excluded.rule
), picture as (
  insert into dedup_picture (slot, id, picture, rank)
  select slot, id, picture, rank::double precision[] from unnest(%(row_slots)s, %(row_nodes)s, %(rows)s, %(ranks)s)
    as g (slot, id, picture, rank)
  where exists (select from same) order by slot, id, picture
  on conflict (slot, id, picture) do update set rank = excluded.rank
) select dag from shard"""
_WALK: LiteralString = """
select g.id, c.phash_limit, c.colour_limit, c.mean_limit, (select mark from dedup_due d where d.slot = g.slot
    and d.id = g.id and d.stage = %(stage)s),
  coalesce((select jsonb_agg(jsonb_build_array(l.kind, l.other, l.phash, l.colour, l.mean, l.similarity, l.rule)
    order by kind, other) from dedup_link l where l.slot = g.slot and l.id = g.id), '[]'),
  coalesce((select jsonb_agg(jsonb_build_array(p.picture, p.rank) order by picture) from dedup_picture p
    where p.slot = g.slot and p.id = g.id), '[]')
from unnest(%(slots)s, %(nodes)s) as g (slot, id) left join dedup_code c on c.slot = g.slot and c.id = g.id"""
_STANDING: LiteralString = """
select id from dedup_code join unnest(%(slots)s, %(nodes)s) as g (slot, id) using (slot, id)
where phash_limit >= %(phash)s and colour_limit >= %(tint)s and mean_limit >= %(shade)s"""
_NARROW: LiteralString = """
select id, code::text, mean, vague from dedup_code
where not (phash_limit >= %(phash)s and colour_limit >= %(tint)s and mean_limit >= %(shade)s)
  and slot not in (select slot from away) order by slot, id limit %(limit)s"""
_DUE: LiteralString = """
select id from dedup_due where stage = %(stage)s and slot not in (select slot from away)
order by slot, id limit %(limit)s"""
_FORGET: LiteralString = """
with due as (
  insert into dedup_due (slot, id, stage, mark)
  select slot, id, stage, gen_random_uuid()
  from (select distinct slot, id from unnest(%(slots)s, %(nodes)s) as g (slot, id)) as g,
    unnest(%(stages)s) as s (stage)
  where (select dag from shard) = %(dag)s order by slot, id, stage
  on conflict (slot, id, stage) do update set mark = excluded.mark
), gone as (
  delete from dedup_picture p using unnest(%(slots)s, %(nodes)s, %(rows)s) as g (slot, id, picture)
  where p.slot = g.slot and p.id = g.id and p.picture = g.picture and (select dag from shard) = %(dag)s
) select dag from shard"""
_SETTLED: LiteralString = """
with gone as (
  delete from dedup_due d using unnest(%(slots)s, %(nodes)s, %(marks)s::uuid[]) as g (slot, id, mark)
  where d.slot = g.slot and d.id = g.id and d.mark = g.mark and d.stage = %(stage)s
    and (select dag from shard) = %(dag)s
) select dag from shard"""

Part = NDArray[np.intp]
Work = Callable[[Connection, Dag, Part], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What the index says of one node."""

    node: str
    limits: tuple[int, int, int] | None  # within which it was compared; None: only others speak of it
    mark: str | None  # while it is due
    links: Sequence[Sequence[Any]]  # kind, other, phash, colour, mean, similarity, rule
    pictures: Sequence[tuple[str, tuple[float, ...]]]  # row and rank


def routed(krablet: Krablet, slots: NDArray[np.int64], work: Work) -> None:
    """Do `work` on the items of every shard, which are given by their places; they follow a slot that moves."""
    todo = np.arange(len(slots))
    while len(todo):
        view = krablet.router
        shards, left = np.array(view.shards)[slots[todo]], []
        for number in np.unique(shards).tolist():
            part = todo[shards == number]
            try:
                krablet.guarded(number, lambda c, d, p=part: work(c, d, p), slots=view)
            except StaleMap:
                left.append(part)
        todo = np.concatenate(left) if left else todo[:0]


def place(connection: Connection, dag: Dag, given: Mapping[str, Any]) -> None:
    """Put codes into the band index."""
    _written(connection, dag, _PLACE, given)


def search(connection: Connection, dag: Dag, given: Mapping[str, Any]) -> list[tuple[int, str, int, int, int]]:
    """What lies near the asked codes: place of the asked one, node, distances of shape and colour, mean colour."""
    statement = _SEARCH.replace("{shape}", _SHAPE).replace("{colour}", _COLOUR)
    found = _execute(connection, statement, given).fetchall()
    check_current(connection, dag)
    return found


def note(connection: Connection, dag: Dag, given: Mapping[str, Any]) -> None:
    """Write down nodes, what is due, links and rows of one shard, all in one transaction."""
    _written(connection, dag, _NOTE, given)


def standing(connection: Connection, dag: Dag, given: Mapping[str, Any]) -> list[str]:
    """Those of the nodes that have been compared within these limits."""
    found = _execute(connection, _STANDING, given).fetchall()
    check_current(connection, dag)
    return [node for (node,) in found]


def narrow(connection: Connection, limits: Mapping[str, int], limit: int) -> list[tuple[str, str, int, bool]]:
    """Some of the nodes that have not been compared within these limits: node, code, mean, vague."""
    return _execute(connection, _NARROW, {**limits, "limit": limit}).fetchall()


def walk(connection: Connection, dag: Dag, stage: str, slots: Ints, nodes: Texts) -> list[Found]:
    """What is known of these nodes, each as of one moment."""
    lines = _execute(connection, _WALK, {"slots": slots, "nodes": nodes, "stage": stage}).fetchall()
    check_current(connection, dag)
    found: list[Found] = []
    for node, phash, colour, mean, mark, links, pictures in lines:
        ranked = [(row_id, tuple(map(float, rank))) for row_id, rank in pictures]
        limits = None if phash is None else (phash, colour, mean)
        found.append(Found(node, limits, None if mark is None else str(mark), links, ranked))
    return found


def due(connection: Connection, stage: str, limit: int) -> list[str]:
    """Nodes that are due in the stage."""
    found = _execute(connection, _DUE, {"stage": stage, "limit": limit}).fetchall()
    return [node for (node,) in found]


def forget(connection: Connection, dag: Dag, given: Mapping[str, Any]) -> None:
    """Take rows off their nodes, which are due then."""
    _written(connection, dag, _FORGET, given)


def settled(connection: Connection, dag: Dag, given: Mapping[str, Any]) -> None:
    """Forget that nodes are due whose marks have not changed."""
    _written(connection, dag, _SETTLED, given)


def _written(connection: Connection, dag: Dag, statement: LiteralString, given: Mapping[str, Any]) -> None:
    if _execute(connection, statement, {**given, "dag": dag.version}).fetchone() != (dag.version,):
        raise StaleDag


def _execute(connection: Connection, statement: str, given: Mapping[str, Any]) -> Cursor:
    """Planned anew each time: a plan that was right for an empty index would be kept while it fills."""
    return connection.execute(statement.encode(), given, prepare=False)
