"""Clusters that have changed are taken apart anew, and their rows get the results of the stage.

Only clusters with a node that is due are read, whole, from whatever shards they lie on. A mark is read in the same
statement as the links and rows that it speaks of, and cleared only if it is still the same after the results were
stored: what changes meanwhile, or is cut short by a kill, stays due.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from psycopg import Connection

from krea_data.dedup import store
from krea_data.dedup.clusters import Cluster, verdicts
from krea_data.dedup.codes import node_of
from krea_data.dedup.index import Index
from krea_data.dedup.limits import Limits
from krea_data.dedup.notes import node_slots
from krea_data.krablet import Krablet
from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.dag import Dag
from krea_data.rows import Row

__all__ = ["due", "forget", "gathered", "repair", "walked"]

_PAGE = 1000  # nodes that are due, of each shard, at a time


def repair(index: Index, stage: str) -> int:
    """Store the stage's results for all rows whose clusters have changed, and return how many rows that were.

    One process at a time does this, others wait for it. ValueError where the index was filled within narrower limits.
    """
    limits = index.stages[stage]
    rows = 0
    with _alone(index.krablet, stage) as held:
        while nodes := due(index.krablet, stage, _PAGE):
            cluster, marks = gathered(index.krablet, nodes, limits, stage)
            results = verdicts(cluster)
            held.execute("select")  # whoever has lost the lock stores nothing
            if results:
                index.krablet.put(stage, results)
            _settle(index.krablet, stage, marks)
            rows += len(results)
    return rows


def due(krablet: Krablet, stage: str, limit: int) -> list[str]:
    """Nodes whose clusters have changed since the stage's last repair, up to `limit` of each shard."""
    found = krablet.shards.everywhere(lambda n, c, d: store.due(c, stage, limit))
    return [node for nodes in found for node in nodes]


def gathered(
    krablet: Krablet, nodes: Sequence[str], limits: Limits, stage: str = ""
) -> tuple[Cluster, Mapping[str, str]]:
    """All that hangs together with these nodes within the limits, and the marks of those that are due."""
    cluster, marks = Cluster(), dict[str, str]()
    edge = set(nodes)
    while edge:
        reached: set[str] = set()
        for found in walked(krablet, sorted(edge), stage):
            cluster.pictures[found.node] = [(rank, row_id) for row_id, rank in found.pictures]
            if found.mark is not None:
                marks[found.node] = found.mark
            if found.limits is not None and found.pictures:
                _check(found, limits)
            for kind, other, phash, colour, mean, *_ in found.links:
                if kind == "copy" and limits.hold(phash, colour, mean):
                    cluster.links[min(found.node, other), max(found.node, other)] = (phash, colour, mean)
                    reached.add(other)
        edge = reached - cluster.pictures.keys()
    return cluster, marks


def walked(krablet: Krablet, nodes: Sequence[str], stage: str) -> list[store.Found]:
    """What the index says of these nodes, each as of one moment."""
    slots, found = node_slots(krablet, nodes), dict[str, store.Found]()

    def work(connection: Connection, dag: Dag, part: store.Part) -> None:
        mine = Texts([nodes[int(place)] for place in part])
        found.update({one.node: one for one in store.walk(connection, dag, stage, Ints(slots[part].tolist()), mine)})

    store.routed(krablet, slots, work)
    return list(found.values())


def forget(index: Index, rows: Sequence[Row]) -> None:
    """Leave out rows that are no longer kept by the tasks before; what they were linked to is due for repair."""
    nodes = [node_of(row.blob) for row in rows]
    slots = node_slots(index.krablet, nodes)

    def work(connection: Connection, dag: Dag, part: store.Part) -> None:
        given = {"slots": Ints(slots[part].tolist()), "nodes": Texts([nodes[int(place)] for place in part])}
        given["stages"] = Texts(list(index.stages))
        store.forget(connection, dag, given | {"rows": Texts([rows[int(place)].id for place in part])})

    store.routed(index.krablet, slots, work)


def _check(found: store.Found, limits: Limits) -> None:
    assert found.limits is not None
    phash, colour, mean = found.limits
    if not Limits(phash_limit=phash, colour_limit=colour, mean_limit=mean).covers(limits):
        raise ValueError(
            f"row {found.pictures[0][0]} was compared within {phash}, {colour} and {mean}, which is narrower than the"
            f" stage's {limits.rule}; call search_again on the index first"
        )


def _settle(krablet: Krablet, stage: str, marks: Mapping[str, str]) -> None:
    nodes = list(marks)
    slots = node_slots(krablet, nodes)

    def work(connection: Connection, dag: Dag, part: store.Part) -> None:
        mine = [nodes[int(place)] for place in part]
        given = {"slots": Ints(slots[part].tolist()), "nodes": Texts(mine), "stage": stage}
        store.settled(connection, dag, given | {"marks": Texts([marks[node] for node in mine])})

    store.routed(krablet, slots, work)


@contextmanager
def _alone(krablet: Krablet, stage: str) -> Iterator[Connection]:
    """A lock on the first shard, for as long as its connection lives."""
    with krablet.shards.connection(0) as connection:
        key = "hashtextextended('dedup ' || current_schema() || %s, 0)"
        connection.execute(f"select pg_advisory_lock({key})".encode(), (stage,))
        try:
            yield connection
        finally:
            connection.execute(f"select pg_advisory_unlock({key})".encode(), (stage,))
