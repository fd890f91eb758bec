"""What the package asks of a cluster, of its queues and of a foreign provider.

Errors of all of them, drawn as a tree:

ClusterError
+-- ConflictError      somebody else wrote first, or the name belongs to another owner: read again and decide again
+-- MissingError       the object is gone
+-- RefusedError       the cluster does not allow or understand the request: no retry helps
+-- UnreachableError   no usable answer; the request may or may not have been carried out
+-- ShortageError      not enough fitting nodes; the message says why the others do not fit
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from krea_infra.nodes import Job, Node, Taint

__all__ = [
    "Cluster",
    "ClusterError",
    "ConflictError",
    "Instance",
    "MissingError",
    "Phase",
    "Pod",
    "Provider",
    "Queues",
    "RefusedError",
    "ShortageError",
    "UnreachableError",
]


class ClusterError(Exception):
    """Any failure of a cluster or of work on it."""


class ConflictError(ClusterError):
    """Somebody else wrote first, or the name belongs to another owner; read again and decide again."""


class MissingError(ClusterError):
    """The object is gone."""


class RefusedError(ClusterError):
    """The cluster does not allow or understand the request; no retry helps."""


class UnreachableError(ClusterError):
    """No usable answer came; the request may or may not have been carried out."""


class ShortageError(ClusterError):
    """Not enough nodes fit; the message says why the others do not."""


class Cluster(Protocol):
    """Nodes and jobs; a write with an old `Node.version` raises ConflictError and changes nothing."""

    def nodes(self) -> Sequence[Node]:
        """All nodes as they are now."""
        ...

    def label(
        self, node: Node, labels: Mapping[str, str | None], annotations: Mapping[str, str | None] | None = None
    ) -> Node:
        """Set labels and annotations in one write, None removes; returns the node as written."""
        ...

    def taint(self, node: Node, taints: Sequence[Taint]) -> Node:
        """Replace the whole list of taints, as the API does; returns the node as written."""
        ...

    def submit(self, job: Job) -> Job:
        """Bring the job forward: absent, then held, then running; never back, so repeating it is harmless.

        Returns the job as it now stands; ConflictError if another owner has the name.
        """
        ...

    def delete(self, job: Job) -> bool:
        """Ask for the job's end; True once neither it nor a pod of it is left. Another owner's job is left alone."""
        ...


class Queues(Protocol):
    """Quota objects as raw dictionaries, so that fields unknown to us survive."""

    def queues(self) -> Sequence[dict[str, Any]]:
        """All queues, each with `metadata.name` and `metadata.resourceVersion`."""
        ...

    def replace(self, queue: dict[str, Any]) -> dict[str, Any]:
        """Write the whole object back; ConflictError if its resourceVersion is old."""
        ...


Phase = Literal["pending", "running", "succeeded", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod bound to a virtual node; `uid` is never used again, `deleting` means that its end was asked for."""

    uid: str
    command: tuple[str, ...]
    image: str = ""
    phase: Phase = "pending"
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What a provider runs for the pod `pod_uid`."""

    id: str
    pod_uid: str
    phase: Phase


class Provider(Protocol):
    """Runs the pods of a virtual node somewhere else."""

    def create(self, pod: Pod) -> str:
        """Start the pod and return the instance's id; the instance remembers `pod.uid`."""
        ...

    def delete(self, instance: str) -> None:
        """End the instance; one that is gone already is fine."""
        ...

    def exec(self, instance: str, command: Sequence[str]) -> str:
        """Run a command beside the instance and return what it printed; MissingError if the instance is gone."""
        ...

    def recover(self) -> Sequence[Instance]:
        """All instances that exist, also those started before this process did."""
        ...
