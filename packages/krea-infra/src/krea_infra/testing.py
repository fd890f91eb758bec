"""Twins for tests: a cluster, queues and a provider in memory that lock like the real ones, and replayed counters."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, TypeVar

from krea_infra.counters import Key, Reading
from krea_infra.interfaces import Cluster, ConflictError, Instance, MissingError, Phase, Pod
from krea_infra.nodes import FAULTS, Job, Node, Taint, faults_from_marks

__all__ = ["Interrupted", "MemoryCluster", "MemoryProvider", "MemoryQueues", "queue_object", "replay"]

T = TypeVar("T")


class MemoryCluster:
    """Nodes and jobs behind one lock; a write with an old version raises ConflictError and changes nothing.

    locking=False forgets the check, which is how naive launches lose claims: for tests of tests only.
    linger: how many calls of `delete` it takes until a job's pods are gone. `writes` lists every change of a node.
    """

    def __init__(self, nodes: Iterable[Node], *, locking: bool = True, linger: int = 1) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._jobs: dict[str, Job] = {}
        self._ending: dict[str, int] = {}
        self._lock = threading.Lock()
        self._version = 1000
        self._locking = locking
        self._linger = linger
        self.writes: list[Node] = []

    def nodes(self) -> list[Node]:
        """All nodes as they are now."""
        with self._lock:
            return list(self._nodes.values())

    def label(
        self, node: Node, labels: Mapping[str, str | None], annotations: Mapping[str, str | None] | None = None
    ) -> Node:
        """Set labels and annotations in one write, None removes; of annotations only faults are kept."""
        with self._lock:
            merged = {**self._current(node).labels, **labels}
            kept = {key: value for key, value in merged.items() if value is not None}
            changes: dict[str, Any] = {"labels": kept}
            if annotations is not None and FAULTS in annotations:
                changes["faults"] = faults_from_marks({}, {FAULTS: annotations[FAULTS] or ""})
            return self._write(node.name, changes)

    def taint(self, node: Node, taints: Sequence[Taint]) -> Node:
        """Replace the whole list of taints."""
        with self._lock:
            self._current(node)
            return self._write(node.name, {"taints": tuple(taints)})

    def submit(self, job: Job) -> Job:
        """Bring the job forward: absent, held, running."""
        with self._lock:
            found = self._jobs.get(job.run)
            if found is not None and found.owner != job.owner:
                raise ConflictError(f"job {job.run} belongs to somebody else; choose another run name")
            if job.run in self._ending:
                raise ConflictError(f"job {job.run} is being deleted")
            if found is None or not job.held:
                self._jobs[job.run] = job
            return self._jobs[job.run]

    def delete(self, job: Job) -> bool:
        """Ask for the job's end; True once it is gone."""
        with self._lock:
            found = self._jobs.get(job.run)
            if found is None or found.owner != job.owner:
                return True
            self._ending[job.run] = self._ending.get(job.run, self._linger) - 1
            if self._ending[job.run] < 0:
                del self._ending[job.run], self._jobs[job.run]
                return True
            return False

    def jobs(self) -> list[Job]:
        """All jobs, held and running."""
        with self._lock:
            return list(self._jobs.values())

    def owners(self) -> set[str]:
        """Owner ids of all jobs."""
        return {job.owner for job in self.jobs()}

    def change(self, name: str, **changes: Any) -> Node:
        """What somebody else does to a node: fields of `Node` by name; the version moves on."""
        with self._lock:
            return self._write(name, changes)

    def remove(self, name: str) -> None:
        """Take a node away."""
        with self._lock:
            del self._nodes[name]

    def _current(self, node: Node) -> Node:
        if node.name not in self._nodes:
            raise MissingError(f"node {node.name} is gone")
        current = self._nodes[node.name]
        if self._locking and current.version != node.version:
            raise ConflictError(f"node {node.name} is at version {current.version}, not {node.version}")
        return current

    def _write(self, name: str, changes: Mapping[str, Any]) -> Node:
        self._version += 1
        self._nodes[name] = replace(self._nodes[name], version=str(self._version), **changes)
        self.writes.append(self._nodes[name])
        return self._nodes[name]


class Interrupted:
    """A cluster whose `at`-th call (from 1) raises `error`, before or after the call took effect."""

    def __init__(self, cluster: Cluster, *, at: int, after: bool, error: BaseException) -> None:
        self._cluster = cluster
        self._at = at
        self._after = after
        self._error = error
        self.calls = 0

    def nodes(self) -> Sequence[Node]:
        """As the cluster's."""
        return self._pass(self._cluster.nodes)

    def label(
        self, node: Node, labels: Mapping[str, str | None], annotations: Mapping[str, str | None] | None = None
    ) -> Node:
        """As the cluster's."""
        return self._pass(lambda: self._cluster.label(node, labels, annotations))

    def taint(self, node: Node, taints: Sequence[Taint]) -> Node:
        """As the cluster's."""
        return self._pass(lambda: self._cluster.taint(node, taints))

    def submit(self, job: Job) -> Job:
        """As the cluster's."""
        return self._pass(lambda: self._cluster.submit(job))

    def delete(self, job: Job) -> bool:
        """As the cluster's."""
        return self._pass(lambda: self._cluster.delete(job))

    def _pass(self, call: Callable[[], T]) -> T:
        self.calls += 1
        if self.calls == self._at and not self._after:
            raise self._error
        result = call()
        if self.calls == self._at:
            raise self._error
        return result


class MemoryQueues:
    """Queue objects with versions; `history` holds every state that anybody could have observed."""

    def __init__(self, queues: Iterable[dict[str, Any]]) -> None:
        self._queues = {queue["metadata"]["name"]: deepcopy(queue) for queue in queues}
        self.history: list[dict[str, dict[str, Any]]] = [deepcopy(self._queues)]

    def queues(self) -> list[dict[str, Any]]:
        """All queues."""
        return deepcopy(list(self._queues.values()))

    def replace(self, queue: dict[str, Any]) -> dict[str, Any]:
        """Write the whole object back if its version is the current one."""
        name = queue["metadata"]["name"]
        if name not in self._queues:
            raise MissingError(f"queue {name} is gone")
        current = self._queues[name]["metadata"]["resourceVersion"]
        if queue["metadata"].get("resourceVersion") != current:
            raise ConflictError(f"queue {name} is at version {current}")
        self._queues[name] = deepcopy(queue)
        self._queues[name]["metadata"]["resourceVersion"] = str(int(current) + 1)
        self.history.append(deepcopy(self._queues))
        return deepcopy(self._queues[name])


def queue_object(name: str, gpus: int, *, flavor: str = "h100", **fields: Any) -> dict[str, Any]:
    """A ClusterQueue with one flavor and one resource; further fields go beside nominalQuota."""
    resource = {"name": "nvidia.com/gpu", "nominalQuota": str(gpus), **fields}
    group = {"coveredResources": ["nvidia.com/gpu"], "flavors": [{"name": flavor, "resources": [resource]}]}
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "ClusterQueue",
        "metadata": {"name": name, "resourceVersion": "1"},
        "spec": {"cohortName": "all", "namespaceSelector": {}, "resourceGroups": [group]},
    }


class MemoryProvider:
    """Instances in memory; `set` plays what happens over there."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}
        self.created = 0

    def create(self, pod: Pod) -> str:
        """Start an instance; like a careless provider it starts a second one if asked twice."""
        self.created += 1
        name = f"i-{self.created:04d}"
        self._instances[name] = Instance(id=name, pod_uid=pod.uid, phase="running")
        return name

    def delete(self, instance: str) -> None:
        """End the instance."""
        self._instances.pop(instance, None)

    def exec(self, instance: str, command: Sequence[str]) -> str:
        """Echo the command."""
        if instance not in self._instances:
            raise MissingError(f"instance {instance} is gone")
        return " ".join(command)

    def recover(self) -> list[Instance]:
        """All instances."""
        return list(self._instances.values())

    def set(self, instance: str, phase: Phase) -> None:
        """Move an instance to another phase."""
        self._instances[instance] = replace(self._instances[instance], phase=phase)


def replay(series: Mapping[tuple[str, str, str], Sequence[float | None]], *, every_s: float = 60.0) -> list[Reading]:
    """Readings from recorded series by (kind, device, counter); None is a value that was not seen."""
    length = max((len(values) for values in series.values()), default=0)
    readings = []
    for index in range(length):
        row = {Key(*key): values[index] for key, values in series.items() if index < len(values)}
        readings.append(Reading(at_s=index * every_s, values={k: v for k, v in row.items() if v is not None}))
    return readings
