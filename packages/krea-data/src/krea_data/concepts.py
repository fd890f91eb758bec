"""Which concepts a corpus ought to cover and does: PageRank over a link graph, and titles looked up in captions."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Audit", "audit", "mentions", "pagerank", "tokens"]


def pagerank(
    links: NDArray[np.integer], nodes: int, *, damping: float = 0.85, tolerance: float = 1e-12, steps: int = 500
) -> NDArray[np.float64]:
    """The PageRank of each of `nodes`, summing to 1, for links `m 2` as (from, to); repeated links count as often.

    Power iteration on the sparse graph; nodes without links give their rank to all. ValueError for a link to a node
    that is not there, or if `steps` do not bring the total change below `tolerance`.
    """
    links = np.asarray(links).reshape(-1, 2)
    if nodes < 1 or (links.size and not 0 <= int(links.min()) <= int(links.max()) < nodes):
        raise ValueError(f"links must name nodes from 0 to {nodes - 1}; give the number of nodes, at least 1")
    source, target = links[:, 0], links[:, 1]
    out = np.bincount(source, minlength=nodes)
    share = 1.0 / out[source]
    loose = out == 0
    rank = np.full(nodes, 1.0 / nodes)
    change = float("inf")
    for _ in range(steps):
        flow = np.bincount(target, weights=rank[source] * share, minlength=nodes)
        fresh = damping * (flow + rank[loose].sum() / nodes) + (1 - damping) / nodes
        change = float(np.abs(fresh - rank).sum())
        rank = fresh
        if change < tolerance:
            return rank
    raise ValueError(f"PageRank still moved by {change:.1e} after {steps} steps; allow more steps or tolerance")


def tokens(text: str) -> tuple[str, ...]:
    """Words in lower case without accents, as titles and captions are compared."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return tuple(re.findall(r"\w+", "".join(sign for sign in plain if not unicodedata.combining(sign))))


def _index(titles: Iterable[str]) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """Titles by their first word, the longest first."""
    index: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for title in dict.fromkeys(titles):
        if words := tokens(title):
            index[words[0]].append((words, title))
    for found in index.values():
        found.sort(key=lambda one: (-len(one[0]), one[1]))
    return index


def mentions(titles: Sequence[str], captions: Iterable[str]) -> Iterator[list[str]]:
    """For each caption the titles that stand in it as whole words; a longer title hides the shorter ones inside it."""
    index = _index(titles)
    for caption in captions:
        words = tokens(caption)
        found: dict[str, None] = {}
        place = 0
        while place < len(words):
            step = 1
            for wanted, title in index.get(words[place], ()):
                if words[place : place + len(wanted)] == wanted:
                    found[title] = None
                    step = len(wanted)
                    break
            place += step
        yield list(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What a corpus covers: captions per title that has any, and the titles without, best-ranked first."""

    counts: dict[str, int]
    missing: tuple[str, ...]

    @property
    def share(self) -> float:
        """Covered titles over all titles; 1 if there are none."""
        total = len(self.counts) + len(self.missing)
        return len(self.counts) / total if total else 1.0


def audit(ranks: Mapping[str, float], captions: Iterable[str]) -> Audit:
    """Look up the titles that `ranks` names in the captions; each caption counts once per title."""
    order = sorted(ranks, key=lambda title: (-ranks[title], title))
    counts = Counter(title for found in mentions(order, captions) for title in found)
    covered = {title: counts[title] for title in order if counts[title]}
    return Audit(counts=covered, missing=tuple(title for title in order if not counts[title]))
