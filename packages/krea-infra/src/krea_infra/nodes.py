"""What a cluster holds: nodes with their marks and faults, and the jobs that run on them.

Nothing here talks to a cluster. A node is read once, judged by pure functions, and written back with the version
that was read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "DEV",
    "FAULTS",
    "FAULTY",
    "OWNER",
    "RUN",
    "Fault",
    "Job",
    "Node",
    "Reason",
    "Severity",
    "Taint",
    "faults_from_marks",
    "faults_to_text",
    "is_held",
    "run_taint",
    "unfit",
]

RUN = "krea.ai/run"
"""Label: the run that has the node, for people."""
OWNER = "krea.ai/owner"
"""Label and taint: the unique id of the launch that has the node; whoever does not know it leaves the node alone."""
FAULTY = "krea.ai/faulty"
"""Label: the worst fault of the node; set by the health rules or by hand."""
FAULTS = "krea.ai/faults"
"""Annotation: all faults of the node as JSON."""
DEV = "krea.ai/dev"
"""Label: the node serves development machines."""

Severity = Literal["suspect", "degraded", "fatal"]
_SEVERITIES: tuple[Severity, ...] = ("suspect", "degraded", "fatal")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """A mark that keeps away pods that do not tolerate it."""

    key: str
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with a node; `gpus` are the indices concerned, empty for the node as a whole."""

    kind: str
    severity: Severity
    gpus: tuple[int, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        if self.severity not in _SEVERITIES:
            raise ValueError(f"severity {self.severity!r} is unknown; use one of {', '.join(_SEVERITIES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a node is not taken: a stable code for programs, a sentence for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One reading of a node; `version` is the resourceVersion that a write must carry.

    gpus: GPUs that can be allocated; used: GPUs that running pods hold now.
    """

    name: str
    version: str
    gpus: int
    used: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    faults: tuple[Fault, ...] = ()
    ready: bool = True
    cordoned: bool = False

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.used < 0:
            raise ValueError(f"node {self.name} has {self.gpus} GPUs and {self.used} in use; neither can be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run on whole nodes.

    run: its name; owner: an id that no other launch uses, so that marks can be told apart after a crash;
    protect: also taint the nodes, which keeps everybody else off them (worth it for very large runs only);
    held: the job exists but starts no pods yet.
    """

    run: str
    owner: str
    nodes: int
    image: str
    command: tuple[str, ...]
    gpus_per_node: int = 8
    protect: bool = False
    held: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.run):
            raise ValueError(
                f"run name {self.run!r} is not a DNS label; use at most 52 of a-z, 0-9 and '-', no '-' at an end"
            )
        if not _LABEL.fullmatch(self.owner):
            raise ValueError(
                f"owner {self.owner!r} is not a label value; use at most 63 of A-Z, a-z, 0-9, '-', '_' and '.'"
            )
        if self.nodes < 1 or self.gpus_per_node < 1:
            raise ValueError(
                f"run {self.run} asks for {self.nodes} nodes of {self.gpus_per_node} GPUs; both must be at least 1"
            )


def run_taint(job: Job) -> Taint:
    """The taint that a protected run puts on its nodes and that its pods tolerate."""
    return Taint(key=OWNER, value=job.owner)


def is_held(node: Node, job: Job) -> bool:
    """Whether the node carries a mark of this very launch."""
    return node.labels.get(OWNER) == job.owner or run_taint(job) in node.taints


def unfit(node: Node, *, tolerate: Sequence[str] = (), accept: Severity = "suspect") -> Reason | None:
    """Why the node cannot carry production work at all, or None; claims and size are not looked at.

    tolerate: taint keys that the work tolerates; accept: the worst fault that may be present.
    """
    if not node.ready:
        return Reason(code="not-ready", text="the node is not Ready")
    if node.cordoned:
        return Reason(code="cordoned", text="the node is cordoned")
    bad = [f for f in node.faults if _SEVERITIES.index(f.severity) > _SEVERITIES.index(accept)]
    if bad:
        worst = max(bad, key=lambda f: _SEVERITIES.index(f.severity))
        where = f" on GPU {', '.join(map(str, worst.gpus))}" if worst.gpus else ""
        why = f": {worst.reason}" if worst.reason else ""
        return Reason(code="faulty", text=f"{worst.severity} {worst.kind} fault{where}{why}")
    if DEV in node.labels:
        return Reason(code="dev", text=f"the node serves development machines ({DEV}={node.labels[DEV]})")
    foreign = [t for t in node.taints if t.effect != "PreferNoSchedule" and t.key not in {OWNER, *tolerate}]
    if foreign:
        return Reason(code="tainted", text=f"taint {foreign[0].key}={foreign[0].value}:{foreign[0].effect}")
    return None


def faults_from_marks(labels: Mapping[str, str], annotations: Mapping[str, str]) -> tuple[Fault, ...]:
    """The faults that a node's own marks tell of; what cannot be read counts as fatal."""
    if text := annotations.get(FAULTS):
        try:
            return tuple(
                Fault(kind=f["kind"], severity=f["severity"], gpus=tuple(f["gpus"]), reason=f["reason"])
                for f in json.loads(text)
            )
        except (ValueError, KeyError, TypeError):
            return (Fault(kind="unknown", severity="fatal", reason=f"annotation {FAULTS} cannot be read"),)
    if FAULTY in labels:
        return (Fault(kind=labels[FAULTY] or "manual", severity="fatal", reason=f"label {FAULTY}"),)
    return ()


def faults_to_text(faults: Sequence[Fault]) -> str:
    """The JSON that `faults_from_marks` reads."""
    rows = [{"kind": f.kind, "severity": f.severity, "gpus": list(f.gpus), "reason": f.reason} for f in faults]
    return json.dumps(rows, separators=(",", ":"))
