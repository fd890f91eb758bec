"""Development pods onto the usable parts of faulty nodes, where training would not run anyway.

A GPU that is a few degrees hotter, or a node with a bad network card, is fine for one person's work. Pods that run
stay where they are: moving one would end its processes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from krea_infra.nodes import DEV, OWNER, Node, Reason

__all__ = ["DevPod", "Packing", "pack", "usable"]

_NETWORK = frozenset({"ib", "link", "nvlink", "network"})
"""Kinds of fault that hurt runs over several nodes only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevPod:
    """A development pod; `node` is where it runs already."""

    name: str
    gpus: int
    node: str | None = None

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise ValueError(f"pod {self.name} asks for {self.gpus} GPUs; ask for 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """New places by pod, and the reason for each pod that found none."""

    places: Mapping[str, str]
    left: Mapping[str, Reason]


def usable(node: Node) -> int:
    """GPUs of the node that one person can work on: none if it is not ready, else all but those with fatal faults.

    Fatal faults of the network cost no GPU, other fatal faults of the whole node cost all.
    """
    if not node.ready or node.cordoned:
        return 0
    fatal = [fault for fault in node.faults if fault.severity == "fatal" and fault.kind not in _NETWORK]
    if any(not fault.gpus for fault in fatal):
        return 0
    return max(0, node.gpus - len({gpu for fault in fatal for gpu in fault.gpus}))


def pack(pods: Iterable[DevPod], nodes: Iterable[Node], *, overflow: bool = False) -> Packing:
    """First fit, large pods first: nodes in use come first, then faulty ones, then with `overflow` healthy ones.

    Claimed nodes are never used.
    """
    pods = list(pods)
    running: dict[str, int] = {}
    for pod in pods:
        if pod.node is not None:
            running[pod.node] = running.get(pod.node, 0) + pod.gpus
    open_to_us = [node for node in nodes if _is_open(node, overflow)]
    free = {node.name: usable(node) - max(node.used, running.get(node.name, 0)) for node in open_to_us}

    def order(node: Node) -> tuple[bool, bool, int, str]:
        return node.name not in running, not _is_spoilt(node), free[node.name], node.name

    rows = [node.name for node in sorted(open_to_us, key=order)]
    places, left = {}, {}
    for pod in sorted((p for p in pods if p.node is None), key=lambda p: (-p.gpus, p.name)):
        name = next((name for name in rows if free[name] >= pod.gpus), None)
        if name is None:
            most = max(free.values(), default=0)
            left[pod.name] = Reason(
                code="no-room", text=f"needs {pod.gpus} GPUs, at most {max(0, most)} are free on one node"
            )
            continue
        places[pod.name] = name
        free[name] -= pod.gpus
    return Packing(places=places, left=left)


def _is_spoilt(node: Node) -> bool:
    return DEV in node.labels or any(fault.severity != "suspect" for fault in node.faults)


def _is_open(node: Node, overflow: bool) -> bool:
    claimed = OWNER in node.labels or any(taint.key == OWNER for taint in node.taints)
    return not claimed and (overflow or _is_spoilt(node)) and usable(node) > 0
