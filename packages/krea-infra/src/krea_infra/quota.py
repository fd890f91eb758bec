"""Quotas that follow the healthy nodes: Kueue's nominalQuota is otherwise a number that somebody keeps by hand.

The pure part counts nodes (`capacity`), splits them in whole nodes by largest remainder (`split`) and says what to
write (`decide`). `follow` writes one value at a time and reads everything again in between: all decreases come before
the first increase, so the sum never rises above the capacity, not even between two writes or after a crash.

Only `nominalQuota` of one flavor and resource is changed, in the object as it was read and with its resourceVersion:
`resourceGroups` is an atomic list, and a server-side apply of one field would drop its neighbours.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import floor, inf
from typing import Any

from krea_infra.interfaces import ConflictError, Queues
from krea_infra.nodes import Node, Reason, unfit

__all__ = ["Capacity", "Decision", "Policy", "Share", "Write", "capacity", "decide", "follow", "overlaps", "split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A queue's part of the nodes: by weight, but not under `least` nor over `most` nodes."""

    queue: str
    weight: float = 1.0
    least: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < inf:
            raise ValueError(f"weight {self.weight} of queue {self.queue} is not a number from 0 on")
        if self.least < 0 or (self.most is not None and self.most < self.least):
            raise ValueError(f"queue {self.queue} cannot have at least {self.least} and at most {self.most} nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the nodes of one flavor become quota.

    labels: the nodeLabels of the ResourceFlavor; gpus_per_node: the size of a whole node; headroom: nodes kept back;
    tolerate: taint keys that the flavor tolerates; max_drop: the share of the present quota that may vanish in one
    step without approval, since a network fault looks like a loss of nodes.
    """

    flavor: str
    shares: tuple[Share, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus_per_node: int = 8
    resource: str = "nvidia.com/gpu"
    headroom: int = 0
    tolerate: tuple[str, ...] = ("nvidia.com/gpu",)
    max_drop: float = 0.3

    def __post_init__(self) -> None:
        names = [share.queue for share in self.shares]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"shares of flavor {self.flavor} name the queues {names}; name each of at least one once")
        if self.gpus_per_node < 1 or self.headroom < 0 or not 0 <= self.max_drop <= 1:
            raise ValueError(
                f"flavor {self.flavor}: gpus_per_node {self.gpus_per_node} must be at least 1, headroom "
                f"{self.headroom} at least 0 and max_drop {self.max_drop} between 0 and 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Whole healthy nodes of a flavor, and why each other node of it does not count."""

    nodes: int
    left_out: Mapping[str, Reason]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One change of a nominalQuota, in units of the resource."""

    queue: str
    old: int
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to write, in this order; `waits` says why nothing is written although something should be."""

    writes: tuple[Write, ...]
    waits: str = ""


def capacity(nodes: Iterable[Node], policy: Policy) -> Capacity:
    """Count the nodes that can do production work; claimed ones count, since their work runs on quota."""
    count, left_out = 0, {}
    for node in nodes:
        if any(node.labels.get(key) != value for key, value in policy.labels.items()):
            continue
        why = unfit(node, tolerate=policy.tolerate)
        if why is None and node.gpus < policy.gpus_per_node:
            text = f"{node.gpus} of {policy.gpus_per_node} GPUs can be allocated"
            why = Reason(code="too-small", text=text)
        if why is None:
            count += 1
        else:
            left_out[node.name] = why
    return Capacity(nodes=max(0, count - policy.headroom), left_out=left_out)


def overlaps(nodes: Iterable[Node], policies: Sequence[Policy]) -> dict[str, tuple[str, ...]]:
    """Nodes that more than one flavor would count, with the flavors; empty when all is well."""
    found = {}
    for node in nodes:
        flavors = tuple(p.flavor for p in policies if all(node.labels.get(k) == v for k, v in p.labels.items()))
        if len(flavors) > 1:
            found[node.name] = flavors
    return found


def split(nodes: int, shares: Sequence[Share]) -> dict[str, int]:
    """Whole nodes per queue by largest remainder; the sum is `nodes`, or less where every queue has its most.

    If the minima alone exceed the nodes, the nodes are split in proportion to the minima.
    """
    least = sum(share.least for share in shares)
    if least > nodes:
        return _remainder(nodes, {share.queue: float(share.least) for share in shares})
    given = {share.queue: share.least for share in shares}
    while (rest := nodes - sum(given.values())) > 0:
        room = {s.queue: inf if s.most is None else s.most - given[s.queue] for s in shares if s.weight > 0}
        weights = {share.queue: share.weight for share in shares if room.get(share.queue, 0) > 0}
        if not weights:
            break
        for queue, count in _remainder(rest, weights).items():
            given[queue] += int(min(count, room[queue]))
    return given


def _remainder(nodes: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Largest-remainder apportionment; ties go to the name that sorts first."""
    total = sum(weights.values())
    exact = {queue: nodes * (weight / total) for queue, weight in weights.items()}
    given = {queue: floor(value) for queue, value in exact.items()}
    order = sorted(exact, key=lambda queue: (given[queue] - exact[queue], queue))
    for queue in order[: nodes - sum(given.values())]:
        given[queue] += 1
    return given


def decide(queues: Iterable[dict[str, Any]], nodes: int, policy: Policy, *, approved: bool = False) -> Decision:
    """The writes that bring the queues to their parts of `nodes` whole nodes, decreases first."""
    objects = {queue["metadata"]["name"]: queue for queue in queues}
    wanted = {q: n * policy.gpus_per_node for q, n in split(nodes, policy.shares).items()}
    now = {queue: _read(objects, queue, policy) for queue in wanted}
    before, after = sum(now.values()), sum(wanted.values())
    if after < before * (1 - policy.max_drop) and not approved:
        text = (
            f"quota of flavor {policy.flavor} would fall from {before} to {after} at once; approve it if nodes are gone"
        )
        return Decision(writes=(), waits=text)
    writes = [Write(queue=queue, old=now[queue], new=wanted[queue]) for queue in wanted if now[queue] != wanted[queue]]
    return Decision(writes=tuple(sorted(writes, key=lambda w: (w.new - w.old, w.queue))))


def follow(
    api: Queues, nodes: Iterable[Node], policy: Policy, *, approved: bool = False, conflicts: int = 100
) -> Decision:
    """Write until the quotas follow the nodes; returns all that was written, or why nothing was.

    `conflicts` bounds how often somebody else may write first before ConflictError is raised.
    """
    count = capacity(nodes, policy).nodes
    written: list[Write] = []
    while True:
        objects = list(api.queues())
        decision = decide(objects, count, policy, approved=approved or bool(written))
        if not decision.writes:
            return Decision(writes=tuple(written), waits=decision.waits)
        write = decision.writes[0]
        changed = deepcopy(next(queue for queue in objects if queue["metadata"]["name"] == write.queue))
        _entry(changed, policy)["nominalQuota"] = str(write.new)
        try:
            api.replace(changed)
        except ConflictError:
            conflicts -= 1
            if conflicts < 0:
                raise
        else:
            written.append(write)


def _read(objects: Mapping[str, dict[str, Any]], queue: str, policy: Policy) -> int:
    if queue not in objects:
        known = ", ".join(sorted(objects)) or "none"
        raise ValueError(
            f"there is no queue {queue!r} in the cluster (there are: {known}); create it or change the policy"
        )
    value = _entry(objects[queue], policy)["nominalQuota"]
    if not str(value).isdigit():
        raise ValueError(f"nominalQuota {value!r} of queue {queue} is not a whole number of {policy.resource}; set one")
    return int(value)


def _entry(queue: dict[str, Any], policy: Policy) -> dict[str, Any]:
    """The dictionary that holds nominalQuota for the policy's flavor and resource."""
    for group in queue.get("spec", {}).get("resourceGroups", ()):
        for flavor in group["flavors"]:
            for resource in flavor["resources"] if flavor["name"] == policy.flavor else ():
                if resource["name"] == policy.resource:
                    return resource
    name = queue["metadata"]["name"]
    raise ValueError(f"queue {name} has no {policy.resource} of flavor {policy.flavor}; add it with nominalQuota 0")
