"""The index of a krablet's pictures: new ones are compared with all old ones and with each other, exactly.

Codes are put into the band index first, and looked up after that is durable. So of two pictures that arrive at the same
moment in two processes at least one finds the other, and no pair is missed. Whoever is killed in between does it again,
which changes nothing. Links are written on both ends, in the transaction that marks the end as due for repair.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection

from krea_data.checks import check_name
from krea_data.dedup import bands, store
from krea_data.dedup.codes import Codes, codes_from, codes_of, mean_distance, node_of
from krea_data.dedup.limits import Limits, widest
from krea_data.dedup.notes import End, Picture, node_slots, write
from krea_data.dedup.packed import ints, texts
from krea_data.krablet import Krablet
from krea_data.krablet.arrays import Texts
from krea_data.krablet.dag import Dag
from krea_data.rows import Row
from krea_data.tasks.dedup import rank_of

__all__ = ["Index", "Pair"]

Pair = tuple[str, str, int, int, int]
"""Two nodes and the distances of their shapes, colours and mean colours."""
_CHUNK = 1000  # codes of one statement


class Index:
    """Copies among the rows of a krablet. `stages` are the limits of every stage by the name of its task.

    What is compared is within the widest limits, so that all stages are served by one index. `prefer` says which rows
    are better, as in `tasks.Dedup`. Safe among threads, and among processes with the same stages.
    """

    def __init__(
        self, krablet: Krablet, stages: Mapping[str, Limits], *, prefer: Sequence[str] = ("since", "order")
    ) -> None:
        if not stages:
            raise ValueError('an index needs the limits of a stage or more, such as {"dedup": Limits()}')
        self.krablet = krablet
        self.stages = {check_name(name): limits for name, limits in stages.items()}
        self.limits = widest(stages.values())
        self.prefer = tuple(prefer)

    def take(self, rows: Sequence[Row]) -> list[int]:
        """Take in rows that the task `hash` has kept; for each, how many links to others were found just now.

        Rows may come again, and in any order. Rows with equal bytes are one node, which is compared once.
        """
        if not rows:
            return []
        codes = codes_of(rows)
        known = self._standing(codes.nodes)
        new = codes.some(np.flatnonzero([node not in known for node in codes.nodes]))
        pairs = self.compare(new)
        self._note(new, rows, pairs)
        found: dict[str, int] = dict.fromkeys(codes.nodes, 0)
        for left, *_ in pairs:
            found[left] += 1
        return [found[node_of(row.blob)] for row in rows]

    def place(self, codes: Codes) -> None:
        """Put codes into the band index; those without shape stay out."""
        clear = codes.some(np.flatnonzero(~codes.vague))
        for start in range(0, len(clear), _CHUNK):
            part = clear.some(np.arange(start, min(start + _CHUNK, len(clear))))
            self._place(part)

    def compare(self, codes: Codes) -> list[Pair]:
        """Put codes into the band index, and return what lies near each of them within the widest limits."""
        self.place(codes)
        return self.near(codes)

    def near(self, codes: Codes, limits: Limits | None = None) -> list[Pair]:
        """What of the index lies near these codes, but not they themselves."""
        limits = self.limits if limits is None else limits
        clear = codes.some(np.flatnonzero(~codes.vague))
        found: list[Pair] = []
        for start in range(0, len(clear), _CHUNK):
            found += self._near(clear.some(np.arange(start, min(start + _CHUNK, len(clear)))), limits)
        return found

    def search_again(self) -> int:
        """Compare once more what was compared within narrower limits than the recipe's present ones; how many nodes."""
        searched = 0
        while len(codes := self._narrow()):
            pairs = self.near(codes)
            write(self.krablet, codes, self.limits, self._ends(pairs), [], list(self.stages))
            searched += len(codes)
        return searched

    def _narrow(self) -> Codes:
        """Some of the nodes that were compared within narrower limits."""
        found = self.krablet.shards.everywhere(lambda n, c, d: store.narrow(c, self._limits(), _CHUNK))
        return codes_from([line for lines in found for line in lines])

    def _place(self, codes: Codes) -> None:
        keys = bands.values(codes.shapes)
        slots, ids, places = self._keys(keys)

        def work(connection: Connection, dag: Dag, part: store.Part) -> None:
            used, mine = np.unique(places[part], return_inverse=True)
            these = codes.some(used)
            given = {"places": ints(mine), "slots": ints(slots[part]), "ids": texts(ids[part])}
            given |= {"nodes": _nodes(these), "codes": texts(these.texts), "means": ints(these.means)}
            store.place(connection, dag, given)

        store.routed(self.krablet, slots, work)

    def _near(self, codes: Codes, limits: Limits) -> list[Pair]:
        slots, ids, places = self._keys(bands.probes(bands.values(codes.shapes), limits.phash_limit))
        asked = {"nodes": _nodes(codes), "codes": texts(codes.texts)}
        asked |= {"phash": limits.phash_limit, "tint": limits.colour_limit}
        hits: set[tuple[int, str, int, int, int]] = set()

        def work(connection: Connection, dag: Dag, part: store.Part) -> None:
            given = {"places": ints(places[part]), "slots": ints(slots[part]), "ids": texts(ids[part])}
            hits.update(store.search(connection, dag, asked | given))

        store.routed(self.krablet, slots, work)
        if not hits:
            return []
        found = sorted(hits)
        mine, theirs = (np.array([hit[k] for hit in found], dtype=np.int64) for k in (0, 4))
        shades = mean_distance(codes.means[mine], theirs).tolist()
        return [
            (codes.nodes[place], node, phash, colour, shade)
            for (place, node, phash, colour, _), shade in zip(found, shades, strict=True)
            if shade <= limits.mean_limit
        ]

    def _keys(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bytes_], NDArray[np.int64]]:
        """Slot, text and place of all keys `n k` in order of slot and text, so that look-ups go along the index."""
        slots = bands.key_slots(keys, self.krablet.router.bits).ravel()
        order = np.lexsort((keys.ravel(), slots))
        return slots[order], bands.key_texts(keys).ravel()[order], order // keys.shape[1]

    def _standing(self, nodes: Sequence[str]) -> set[str]:
        """The nodes that have been compared already."""
        slots, found = node_slots(self.krablet, nodes), set[str]()

        def work(connection: Connection, dag: Dag, part: store.Part) -> None:
            given = {"slots": ints(slots[part]), "nodes": Texts([nodes[int(place)] for place in part])}
            found.update(store.standing(connection, dag, given | self._limits()))

        store.routed(self.krablet, slots, work)
        return found

    def _note(self, new: Codes, rows: Sequence[Row], pairs: Sequence[Pair]) -> None:
        """Write down what was taken in, node by node on the shards of the nodes."""
        pictures = [Picture(node_of(row.blob), row.id, rank_of(row, self.prefer)) for row in rows]
        write(self.krablet, new, self.limits, self._ends(pairs), pictures, list(self.stages))

    def _ends(self, pairs: Sequence[Pair]) -> list[End]:
        both = [*pairs, *((right, left, *rest) for left, right, *rest in pairs)]
        return [End(left, right, "copy", self.limits.rule, *rest) for left, right, *rest in both]

    def _limits(self) -> dict[str, int]:
        limits = self.limits
        return {"phash": limits.phash_limit, "tint": limits.colour_limit, "shade": limits.mean_limit}


def _nodes(codes: Codes) -> Texts:
    return Texts(codes.nodes)
