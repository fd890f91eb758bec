"""Launch a run on nodes of its own and take it down again, so that a crash at any call leaves nothing behind.

The order makes it safe:

1. the job is submitted held, so that a record of the launch exists before the first node is touched;
2. each node is marked by compare-and-swap on the version in which it was seen free: label first, taint second;
3. a fresh list must show exactly the planned marks, or the loop plans again (marks that are held already are kept);
4. only then is the job let go.

Release goes back: job gone with all pods, taint off, label off. The label is the first mark to come and the last to
go, so it always leads to a half-done node. Both are idempotent: after a crash call the same function with the same job.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from krea_infra.interfaces import Cluster, ClusterError, ConflictError, MissingError, ShortageError
from krea_infra.nodes import OWNER, RUN, Job, Node, is_held, run_taint
from krea_infra.select import Plan, Request, explain, select

__all__ = ["claim", "launch", "orphans", "release", "sweep"]


def _sleep(tries: int) -> None:
    time.sleep(min(0.05 * 2**tries, 5.0))


def launch(cluster: Cluster, request: Request, *, rounds: int = 20, pause: Callable[[int], None] = _sleep) -> Plan:
    """Claim the nodes and start the job, or raise ShortageError with nothing left behind.

    A run that was launched already is left as it is, and the nodes that it holds are returned. An owner id serves one
    launch and its repetitions, never a later run.
    """
    job = cluster.submit(replace(request.job, held=True))
    if not job.held:
        names = tuple(sorted(node.name for node in cluster.nodes() if is_held(node, job)))
        return Plan(run=job.run, nodes=names[: job.nodes], spares=names[job.nodes :], missing=0, reasons={})
    try:
        plan = claim(cluster, request, rounds=rounds, pause=pause)
    except (ShortageError, ConflictError):
        release(cluster, request.job, rounds=rounds, pause=pause)
        raise
    cluster.submit(replace(request.job, held=False))
    return plan


def claim(cluster: Cluster, request: Request, *, rounds: int = 20, pause: Callable[[int], None] = _sleep) -> Plan:
    """Mark the planned nodes until a fresh list shows them all marked; nothing that others marked is touched."""
    job = request.job
    for tries in range(rounds):
        nodes = {node.name: node for node in cluster.nodes()}
        plan = select(nodes.values(), request)
        if plan.missing:
            raise ShortageError(explain(plan))
        wanted = {*plan.nodes, *plan.spares}
        surplus = [node for node in nodes.values() if is_held(node, job) and node.name not in wanted]
        unmarked = [nodes[name] for name in (*plan.nodes, *plan.spares) if not _is_marked(nodes[name], job)]
        if not surplus and not unmarked:
            return plan
        lost = [node.name for node in surplus if not _try(_unmark, cluster, node, job)]
        lost += [node.name for node in unmarked if not _try(_mark, cluster, node, job)]
        if lost:
            pause(tries)
    raise ConflictError(
        f"run {job.run}: nodes changed in each of {rounds} rounds; launch again when the cluster is calmer"
    )


def release(
    cluster: Cluster,
    job: Job,
    *,
    rounds: int = 20,
    timeout_s: float = 600.0,
    pause: Callable[[int], None] = _sleep,
) -> tuple[str, ...]:
    """End the job, wait for its last pod, and take off exactly the marks of this owner; returns the freed nodes."""
    give_up, tries = time.monotonic() + timeout_s, 0
    while not cluster.delete(job):
        if time.monotonic() > give_up:
            raise ClusterError(f"pods of run {job.run} are still there after {timeout_s:g} s; its nodes stay claimed")
        pause(tries)
        tries += 1
    freed: set[str] = set()
    for tries in range(rounds):
        held = [node for node in cluster.nodes() if is_held(node, job)]
        if not held:
            return tuple(sorted(freed))
        done = [node.name for node in held if _try(_unmark, cluster, node, job)]
        freed.update(done)
        if len(done) < len(held):
            pause(tries)
    raise ConflictError(f"run {job.run}: marks could not be removed in {rounds} rounds; release again")


def orphans(nodes: Iterable[Node], living: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Owners that have marks but no job, with their nodes; `living` are the owners of all jobs, read after the nodes.

    A job exists before its first mark and until its last pod is gone, so in that order no running launch is reported.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        owners = {taint.value for taint in node.taints if taint.key == OWNER}
        if OWNER in node.labels:
            owners.add(node.labels[OWNER])
        for owner in owners - set(living):
            found[owner].append(node.name)
    return {owner: tuple(sorted(names)) for owner, names in sorted(found.items())}


def sweep(cluster: Cluster, living: Callable[[], Collection[str]]) -> tuple[str, ...]:
    """Take off the marks of owners without a job and return the freed nodes; `living` lists the owners of all jobs.

    Writes carry the versions read before `living` was asked, so a node that changed since is left for the next sweep.
    """
    nodes = {node.name: node for node in cluster.nodes()}
    freed = set()
    for owner, names in orphans(nodes.values(), living()).items():
        job = Job(run="orphan", owner=owner, nodes=1, image="", command=())
        freed |= {name for name in names if _try(_unmark, cluster, nodes[name], job)}
    return tuple(sorted(freed))


def _is_marked(node: Node, job: Job) -> bool:
    return node.labels.get(OWNER) == job.owner and (not job.protect or run_taint(job) in node.taints)


def _mark(cluster: Cluster, node: Node, job: Job) -> None:
    if node.labels.get(OWNER) != job.owner:
        node = cluster.label(node, {RUN: job.run, OWNER: job.owner})
    if job.protect and run_taint(job) not in node.taints:
        cluster.taint(node, (*node.taints, run_taint(job)))


def _unmark(cluster: Cluster, node: Node, job: Job) -> None:
    if run_taint(job) in node.taints:
        node = cluster.taint(node, [taint for taint in node.taints if taint != run_taint(job)])
    if node.labels.get(OWNER) == job.owner:
        cluster.label(node, {RUN: None, OWNER: None})


def _try(write: Callable[[Cluster, Node, Job], None], cluster: Cluster, node: Node, job: Job) -> bool:
    try:
        write(cluster, node, job)
    except (ConflictError, MissingError):  # the node changed or is gone: the caller reads again and decides again
        return False
    return True
