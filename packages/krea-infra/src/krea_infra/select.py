"""Which N nodes, and why not each other one: a pure function from a snapshot to a plan.

Order of decisions: nodes that cannot serve are left out with a reason; a required domain is chosen; nodes that are
only disliked are left out if enough others remain; the rest is packed into as few domains as can be, widest first.
Nodes that this launch holds already are kept, so planning again after a crash gives the same answer. Equal choices are
ordered by a hash of the run, so that launches at the same time reach for different nodes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from krea_infra.nodes import OWNER, RUN, Job, Node, Reason, Severity, is_held, unfit

__all__ = ["Plan", "Request", "explain", "select"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job and how to choose its nodes.

    spares: healthy nodes claimed besides, to replace one that fails; fewer are accepted;
    topology: node labels from the widest domain to the narrowest (zone, block, rack), packed as well as possible;
    within: a node label of which all nodes must share one value;
    refuse: label terms, `key` or `key=value`, whose nodes are never taken (hard anti-affinity);
    avoid: the same, but taken when the others do not suffice (soft anti-affinity);
    exclude: node names never taken; accept: the worst fault a node may have; tolerate: taint keys the pods tolerate.
    """

    job: Job
    spares: int = 0
    topology: tuple[str, ...] = ()
    within: str | None = None
    refuse: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    accept: Severity = "suspect"
    tolerate: tuple[str, ...] = ("nvidia.com/gpu",)

    def __post_init__(self) -> None:
        if self.spares < 0:
            raise ValueError(f"{self.spares} spares make no sense; ask for 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The nodes of a run, its spares, and the reason for each node that is neither.

    missing: how many nodes short the cluster is; if not 0, `nodes` and `spares` are empty.
    """

    run: str
    nodes: tuple[str, ...]
    spares: tuple[str, ...]
    missing: int
    reasons: Mapping[str, Reason]


def select(nodes: Iterable[Node], request: Request) -> Plan:
    """Choose nodes for the request from one snapshot; same snapshot in any order, same plan."""
    rank = _rank(request)
    nodes = sorted(nodes, key=rank)
    reasons = {node.name: why for node in nodes if (why := _refusal(node, request))}
    pool = [node for node in nodes if node.name not in reasons]
    count = request.job.nodes
    if request.within:
        pool = _domain(pool, request, reasons)
    if len(pool) < count:
        for node in pool:
            reasons[node.name] = Reason(code="fits", text=f"fits, but only {len(pool)} of {count} needed nodes do")
        return Plan(run=request.job.run, nodes=(), spares=(), missing=count - len(pool), reasons=reasons)
    chosen = _pack(_liked(pool, count, request), count, request)
    taken = {node.name for node in chosen}
    spares = _near([node for node in pool if node.name not in taken], chosen, request)
    taken |= {node.name for node in spares}
    for node in pool:
        if node.name not in taken:
            reasons[node.name] = Reason(code="unneeded", text="fits, but is not needed")
    names, extra = (tuple(node.name for node in group) for group in (chosen, spares))
    return Plan(run=request.job.run, nodes=names, spares=extra, missing=0, reasons=reasons)


def explain(plan: Plan, names: int = 4) -> str:
    """The plan in a few lines: what is taken, then the reasons with how many nodes share each."""
    head = f"run {plan.run}: {len(plan.nodes)} nodes, {len(plan.spares)} spares"
    if plan.missing:
        head = f"run {plan.run}: {plan.missing} nodes short"
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, reason in plan.reasons.items():
        groups[reason.code, reason.text].append(name)
    lines = [head]
    for (code, text), members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = ", ".join(sorted(members)[:names]) + (", ..." if len(members) > names else "")
        lines.append(f"{len(members):6d} {code:10s} {text} ({shown})")
    return "\n".join(lines)


def _refusal(node: Node, request: Request) -> Reason | None:
    job = request.job
    if node.name in request.exclude:
        return Reason(code="excluded", text="excluded by name")
    if why := unfit(node, tolerate=request.tolerate, accept=request.accept):
        return why
    claims = {taint.value for taint in node.taints if taint.key == OWNER} | {node.labels.get(OWNER, job.owner)}
    if claims - {job.owner}:
        return Reason(code="claimed", text=f"claimed by run {node.labels.get(RUN, 'unknown')}")
    if term := _match(node, request.refuse):
        return Reason(code="refused", text=f"carries the refused label {term}")
    if node.gpus < job.gpus_per_node:
        return Reason(code="too-small", text=f"{node.gpus} GPUs can be allocated, {job.gpus_per_node} are needed")
    if node.used and not is_held(node, job):
        return Reason(code="busy", text=f"pods use {node.used} of {node.gpus} GPUs")
    return None


def _match(node: Node, terms: Sequence[str]) -> str | None:
    for term in terms:
        key, equals, value = term.partition("=")
        if key in node.labels and (not equals or node.labels[key] == value):
            return term
    return None


def _rank(request: Request) -> Callable[[Node], tuple[bool, bool, bytes]]:
    """Nodes held already come first, disliked ones last, the rest in an order of the run's own."""

    def rank(node: Node) -> tuple[bool, bool, bytes]:
        held = is_held(node, request.job)
        return not held, not held and _disliked(node, request), _hash(request, node.name)

    return rank


def _disliked(node: Node, request: Request) -> bool:
    soft_taint = any(t.effect == "PreferNoSchedule" and t.key not in request.tolerate for t in node.taints)
    return bool(node.faults) or soft_taint or _match(node, request.avoid) is not None


def _hash(request: Request, name: str) -> bytes:
    return blake2b(f"{request.job.run}\0{name}".encode(), digest_size=8).digest()


def _groups(nodes: Iterable[Node], level: str) -> dict[str, list[Node]]:
    groups: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        groups[node.labels.get(level, "")].append(node)
    return groups


def _domain(pool: list[Node], request: Request, reasons: dict[str, Reason]) -> list[Node]:
    """The nodes of the one domain to use; the others get their reason."""
    within, need = request.within or "", request.job.nodes
    groups = _groups(pool, within)
    unnamed = groups.pop("", [])
    reasons.update({n.name: Reason(code="outside", text=f"has no label {within}") for n in unnamed})

    def order(name: str) -> tuple[bool, bool, int, int, bytes]:
        group = groups[name]
        held = sum(is_held(node, request.job) for node in group)
        small, bare = len(group) < need, len(group) < need + request.spares
        return small, bare, -held, -len(group) if small else len(group), _hash(request, name)

    if not groups:
        return []
    best, *others = sorted(groups, key=order)
    for name in others:
        text = f"{within}={name} holds {len(groups[name])} fitting nodes, {within}={best} is used"
        reasons.update({node.name: Reason(code="outside", text=text) for node in groups[name]})
    return groups[best]


def _liked(pool: list[Node], count: int, request: Request) -> list[Node]:
    """The pool without disliked nodes, or with as few of them as needed."""
    liked = [node for node in pool if is_held(node, request.job) or not _disliked(node, request)]
    names = {node.name for node in liked}
    rest = [node for node in pool if node.name not in names]
    return liked + rest[: max(0, count - len(liked))]


def _pack(pool: list[Node], count: int, request: Request, depth: int = 0) -> list[Node]:
    """`count` nodes from as few domains as possible: the largest domains, then the smallest that holds the rest."""
    if depth == len(request.topology):
        return sorted(pool, key=_rank(request))[:count]
    groups = _groups(pool, request.topology[depth])
    chosen: list[Node] = []
    while (rest := count - len(chosen)) > 0:
        name = min(groups, key=lambda name: _preference(name, groups[name], rest, request))
        group = groups.pop(name)
        chosen += _pack(group, min(rest, len(group)), request, depth + 1)
    return chosen


def _preference(name: str, group: list[Node], need: int, request: Request) -> tuple[int, bool, bool, int, bytes]:
    held = sum(is_held(node, request.job) for node in group)
    fits = len(group) >= need
    return -held, not name, not fits, len(group) if fits else -len(group), _hash(request, name)


def _near(pool: list[Node], chosen: list[Node], request: Request) -> list[Node]:
    """Spares: held and liked ones first, then those that share most domains with the run."""
    used = {level: {node.labels.get(level) for node in chosen} for level in request.topology}
    rank = _rank(request)

    def order(node: Node) -> tuple[bool, bool, int, bytes]:
        shared = sum(node.labels.get(level) in values for level, values in used.items())
        free, disliked, tie = rank(node)
        return free, disliked, -shared, tie

    return sorted(pool, key=order)[: request.spares]
