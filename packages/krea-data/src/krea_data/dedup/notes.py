"""What is written down of nodes: codes, ends of links with their reasons, rows, and that all these are due."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection

from krea_data.dedup import store
from krea_data.dedup.codes import Codes
from krea_data.dedup.limits import Limits
from krea_data.dedup.packed import ints, texts
from krea_data.krablet import Krablet
from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.dag import Dag

__all__ = ["End", "Picture", "node_slots", "write"]


class End(NamedTuple):
    """One end of a link, and why it is there: a "copy" by its distances, a "redraw" by its similarity."""

    left: str  # the node that it is written at
    right: str
    kind: str
    rule: str
    phash: int | None = None
    colour: int | None = None
    mean: int | None = None
    similarity: float | None = None


class Picture(NamedTuple):
    """A row of a node."""

    node: str
    id: str
    rank: tuple[float, ...]  # lower is better


def node_slots(krablet: Krablet, nodes: Sequence[str]) -> NDArray[np.int64]:
    """The slots of nodes."""
    slot = krablet.router.slot
    return np.array([slot(node) for node in nodes], dtype=np.int64)


def write(
    krablet: Krablet,
    codes: Codes,
    limits: Limits,
    links: Sequence[End],
    pictures: Sequence[Picture],
    stages: Sequence[str],
) -> None:
    """Write down codes as compared within these limits, ends of links, and rows; their nodes are due in the stages.

    What belongs to one node is written in one transaction. Again changes nothing but the marks of what is due.
    """
    by_node: dict[str, tuple[list[int], dict[tuple[str, str], End], list[Picture]]]
    by_node = defaultdict(lambda: ([], {}, []))
    for number, node in enumerate(codes.nodes):
        by_node[node][0].append(number)
    for link in links:
        by_node[link.left][1][link.kind, link.right] = link
    for picture in {(one.node, one.id): one for one in pictures}.values():
        by_node[picture.node][2].append(picture)
    nodes = list(by_node)
    slots = node_slots(krablet, nodes)
    fixed = {"stages": Texts(stages), "phash": limits.phash_limit, "tint": limits.colour_limit}
    fixed["shade"] = limits.mean_limit

    def work(connection: Connection, dag: Dag, part: store.Part) -> None:
        mine = {nodes[int(number)]: int(slots[number]) for number in part}
        found = codes.some(np.array([n for node in mine for n in by_node[node][0]], dtype=np.intp))
        given = fixed | {"due_slots": Ints(list(mine.values())), "due": Texts(list(mine))}
        given |= _codes(found, mine)
        given |= _links([link for node in mine for link in by_node[node][1].values()], mine)
        given |= _pictures([picture for node in mine for picture in by_node[node][2]], mine)
        store.note(connection, dag, given)

    store.routed(krablet, slots, work)


def _codes(codes: Codes, slots: Mapping[str, int]) -> dict[str, Any]:
    return {
        "slots": Ints([slots[node] for node in codes.nodes]),
        "nodes": Texts(codes.nodes),
        "codes": texts(codes.texts),
        "means": ints(codes.means),
        "vagues": ints(codes.vague.astype(np.int64)),
    }


def _links(links: Sequence[End], slots: Mapping[str, int]) -> dict[str, Any]:
    return {
        "link_slots": Ints([slots[link.left] for link in links]),
        "lefts": Texts([link.left for link in links]),
        "kinds": Texts([link.kind for link in links]),
        "rights": Texts([link.right for link in links]),
        "phashes": Texts([_text(link.phash) for link in links]),
        "colours": Texts([_text(link.colour) for link in links]),
        "shades": Texts([_text(link.mean) for link in links]),
        "similarities": Texts([_text(link.similarity) for link in links]),
        "rules": Texts([link.rule for link in links]),
    }


def _pictures(pictures: Sequence[Picture], slots: Mapping[str, int]) -> dict[str, Any]:
    return {
        "row_slots": Ints([slots[picture.node] for picture in pictures]),
        "row_nodes": Texts([picture.node for picture in pictures]),
        "rows": Texts([picture.id for picture in pictures]),
        "ranks": Texts(["{" + ",".join(map(str, picture.rank)) + "}" for picture in pictures]),
    }


def _text(value: float | None) -> str | None:
    return None if value is None else str(value)
