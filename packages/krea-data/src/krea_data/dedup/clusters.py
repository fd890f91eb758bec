"""What is to be said of the rows of some clusters: the same as `tasks.Dedup` says of them in one pass over a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from krea_data.rows import Result
from krea_data.tasks.dedup import stars

__all__ = ["Cluster", "verdicts"]

Ranked = tuple[tuple[float, ...], str]


@dataclass(kw_only=True, slots=True)
class Cluster:
    """Nodes with their rows and links: closed, no link leads out."""

    pictures: dict[str, list[Ranked]] = field(default_factory=dict)  # by node; nodes without any do not count
    links: dict[tuple[str, str], tuple[int, int, int]] = field(default_factory=dict)  # by ends in order

    def best(self, node: str) -> str:
        """The row of a node that stays."""
        return min(self.pictures[node])[1]

    def distances(self, one: str, other: str) -> tuple[int, int, int]:
        """Of shape, colour and mean colour, of two linked nodes."""
        return self.links[min(one, other), max(one, other)]

    def medoids(self) -> dict[str, str]:
        """For each node whose rows all have to go, the linked node that they go for."""
        ranked = sorted(
            (node for node, rows in self.pictures.items() if rows), key=lambda node: min(self.pictures[node])
        )
        place = {node: number for number, node in enumerate(ranked)}
        pairs = [(place[left], place[right]) for left, right in self.links if left in place and right in place]
        return {ranked[lost]: ranked[medoid] for lost, medoid in stars(pairs).items()}


def verdicts(cluster: Cluster) -> Mapping[str, Result]:
    """The result of every row."""
    gone = cluster.medoids()
    found: dict[str, Result] = {}
    for node, rows in cluster.pictures.items():
        if not rows:
            continue
        best = cluster.best(node)
        for row_id in _others(rows, best):
            found[row_id] = Result(value={"kept": best, "phash": 0, "colour": 0}, drop="duplicate")
        found[best] = Result()
        if node in gone:
            phash, colour, _ = cluster.distances(node, gone[node])
            value = {"kept": cluster.best(gone[node]), "phash": phash, "colour": colour}
            found[best] = Result(value=value, drop="near duplicate")
    return found


def _others(rows: Sequence[Ranked], best: str) -> list[str]:
    return [row_id for _, row_id in rows if row_id != best]
