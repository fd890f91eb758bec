"""What a cluster shows, by the words of its members, and which clusters a person should look at, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Group", "groups"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A cluster: its rows, a name from their words, how alike they are (mean cosine to the centre), and `flags`.

    crowded      it has many times the rows of a usual cluster
    one author   nearly all of it comes from one author
    uniform      its members are nearly the same picture
    mixed        its members share no word
    """

    number: int
    rows: tuple[int, ...]
    name: str
    alike: float
    flags: tuple[str, ...]


def groups(
    members: NDArray[np.integer],
    vectors: NDArray[np.float32],
    labels: Sequence[Sequence[str]],
    authors: Sequence[str] | None = None,
    *,
    crowded: float = 8.0,
    author: float = 0.9,
    uniform: float = 0.97,
    shared: float = 0.2,
) -> list[Group]:
    """The clusters by size, largest first. `members` has the cluster of each row, `labels` its words.

    The limits: times the median size, share of one author, mean cosine, and share of rows that have the best word.
    """
    if not len(members) == len(vectors) == len(labels) or (authors is not None and len(authors) != len(labels)):
        raise ValueError(f"{len(members)} rows have {len(vectors)} vectors and {len(labels)} lists of labels; give all")
    everywhere = Counter(word for words in labels for word in set(words))
    parts = _parts(np.asarray(members))
    usual = float(np.median([len(part) for _, part in parts])) if parts else 0.0
    found: list[Group] = []
    for number, part in parts:
        rows: tuple[int, ...] = tuple(part.tolist())
        words = _ranked([labels[row] for row in rows], everywhere, len(labels))
        alike = _alike(vectors[part])
        flags = {
            "crowded": len(rows) > crowded * usual,
            "one author": authors is not None and len(rows) > 1 and _most([authors[row] for row in rows]) >= author,
            "uniform": len(rows) > 1 and alike >= uniform,
            "mixed": len(rows) > 1 and (not words or next(iter(words.values())) < shared),
        }
        found.append(
            Group(
                number=number,
                rows=rows,
                name=", ".join(list(words)[:3]),
                alike=round(alike, 4),
                flags=tuple(flag for flag, raised in flags.items() if raised),
            )
        )
    return sorted(found, key=lambda group: (-len(group.rows), group.number))


def _parts(members: NDArray[np.integer]) -> list[tuple[int, NDArray[np.intp]]]:
    """Every cluster with the places of its rows."""
    order = np.argsort(members, kind="stable")
    numbers, starts = np.unique(members[order], return_index=True)
    return list(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else []


def _ranked(labels: Sequence[Sequence[str]], everywhere: Mapping[str, int], rows: int) -> dict[str, float]:
    """Words that are more frequent here than elsewhere, the most telling first, with their share of the rows."""
    counts = Counter(word for words in labels for word in set(words))
    shares = {word: count / len(labels) for word, count in counts.items()}
    lift = {word: share * rows / everywhere[word] for word, share in shares.items()}
    telling = [word for word in counts if lift[word] > 1.5 and (counts[word] > 1 or len(labels) == 1)]
    telling.sort(key=lambda word: (-shares[word] * float(np.log(lift[word])), word))
    return {word: shares[word] for word in telling}


def _alike(vectors: NDArray[np.float32]) -> float:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centre = unit.mean(axis=0)
    return float((unit @ centre).mean() / max(1e-12, float(np.linalg.norm(centre))))


def _most(authors: Sequence[str]) -> float:
    """The share of the most frequent author; rows whose author is not known count as nobody's."""
    counts = Counter(author for author in authors if author)
    return max(counts.values(), default=0) / len(authors)
