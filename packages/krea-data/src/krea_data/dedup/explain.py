"""Why a row stays or goes: the chain from it to the row that stays for it, and all that it is linked to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg import Connection

from krea_data.dedup.clusters import Cluster
from krea_data.dedup.codes import node_of
from krea_data.dedup.index import Index
from krea_data.dedup.repair import gathered, walked
from krea_data.krablet import Krablet
from krea_data.krablet.dag import Dag
from krea_data.krablet.scan import read
from krea_data.rows import Result, Row

__all__ = ["Explanation", "Near", "Step", "explain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A row goes for another one."""

    id: str
    kept: str
    reason: str  # "duplicate" or "near duplicate"
    phash: int
    colour: int
    mean: int
    rule: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """Another picture that a row's picture is linked to."""

    ids: tuple[str, ...]  # its rows, the best first
    kind: str  # "copy", or "redraw", which is only proposed
    rule: str
    phash: int | None = None
    colour: int | None = None
    mean: int | None = None
    similarity: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What the index says of a row in a stage; `str` of it is for people."""

    id: str
    stage: str
    chain: tuple[Step, ...]  # empty: the row stays
    same: tuple[str, ...]  # further rows with the same bytes
    near: tuple[Near, ...]  # the nearest first
    cluster: tuple[str, ...]  # all rows that hang together with it, itself too
    stored: Result | None  # the result in the table; it may be older
    due: bool  # whether the cluster has changed since the last repair

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def explain(index: Index, stage: str, row_id: str) -> Explanation:
    """Why a row goes or stays in a stage, by the links of this moment; LookupError where the index lacks it."""
    row = _row(index.krablet, row_id)
    node = node_of(row.blob)
    cluster, marks = gathered(index.krablet, [node], index.stages[stage], stage)
    if row_id not in (own for _, own in cluster.pictures[node]):
        raise LookupError(f"row {row_id} is not in the index; the task link has not looked at it yet")
    gone = cluster.medoids()
    rows = [own for _, own in sorted(cluster.pictures[node])]
    return Explanation(
        id=row_id,
        stage=stage,
        chain=tuple(_chain(cluster, gone, node, row_id, index.stages[stage].rule)),
        same=tuple(own for own in rows if own != row_id),
        near=_near(index.krablet, node),
        cluster=tuple(sorted(own for ranked in cluster.pictures.values() for _, own in ranked)),
        stored=row.results.get(stage),
        due=bool(marks),
    )


def _chain(cluster: Cluster, gone: dict[str, str], node: str, row_id: str, rule: str) -> Iterator[Step]:
    best = cluster.best(node)
    if row_id != best:
        yield Step(id=row_id, kept=best, reason="duplicate", phash=0, colour=0, mean=0, rule="equal bytes")
    if node in gone:
        phash, colour, mean = cluster.distances(node, gone[node])
        kept = cluster.best(gone[node])
        yield Step(id=best, kept=kept, reason="near duplicate", phash=phash, colour=colour, mean=mean, rule=rule)


def _near(krablet: Krablet, node: str) -> tuple[Near, ...]:
    links = [link for found in walked(krablet, [node], "") for link in found.links]
    others = {found.node: found.pictures for found in walked(krablet, sorted({link[1] for link in links}), "")}
    near = [
        Near(
            ids=tuple(row_id for row_id, _ in sorted(others[other], key=lambda one: (one[1], one[0]))),
            kind=kind,
            rule=rule,
            phash=phash,
            colour=colour,
            mean=mean,
            similarity=similarity,
        )
        for kind, other, phash, colour, mean, similarity, rule in links
    ]
    return tuple(sorted(near, key=lambda one: (one.kind, one.phash or 0, -(one.similarity or 0), one.ids)))


def _row(krablet: Krablet, row_id: str) -> Row:
    slot = krablet.router.slot(row_id)
    for rows in krablet.routed([row_id], str, lambda c, d, ids: _read(c, d, slot, ids)):
        if row_id in rows:
            return rows[row_id]
    raise LookupError(f"there is no row {row_id!r:.80}")


def _read(connection: Connection, dag: Dag, slot: int, ids: Sequence[str]) -> dict[str, Row]:
    return read(connection, dag, [(slot, row_id) for row_id in ids])


def _lines(one: Explanation) -> Iterator[str]:
    if not one.chain:
        yield f"{one.id} stays in {one.stage}"
    for step in one.chain:
        yield f"{step.id} goes as a {step.reason} of {step.kept}: {_reason(step)}"
    if one.due:
        yield "its cluster has changed since the last repair, so the table may still say something else"
    if one.same:
        yield f"equal bytes: {', '.join(one.same)}"
    for near in one.near:
        yield f"{near.kind}: {', '.join(near.ids) or 'no row any more'}: {_reason(near)}"
    if len(one.cluster) > 1:
        yield f"{len(one.cluster)} rows hang together: {', '.join(one.cluster[:20])}{' ...' * (len(one.cluster) > 20)}"


def _reason(one: Step | Near) -> str:
    if isinstance(one, Near) and one.similarity is not None:
        return f"similarity {one.similarity:.4f} ({one.rule})"
    if one.rule == "equal bytes":
        return one.rule
    return f"{one.phash} bits of shape, {one.colour} of colour, {one.mean} of mean colour ({one.rule})"
