"""Cluster and Queues on the real Kubernetes API.

Objects stay raw dictionaries, so that fields unknown to the client survive. Every write to a node or queue carries the
resourceVersion that was read; a 409 becomes ConflictError and is never repeated blindly.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from krea_infra.interfaces import ClusterError, ConflictError, MissingError, RefusedError, UnreachableError
from krea_infra.nodes import OWNER, RUN, Job, Node, Taint, faults_from_marks, run_taint

try:
    import kubernetes
    import urllib3
except ImportError as error:
    raise ImportError("the Kubernetes client is missing; install krea-infra[kubernetes]") from error

__all__ = ["KubernetesCluster", "KubernetesQueues", "connect", "job_object"]

_GPU = "nvidia.com/gpu"
_MERGE = "application/merge-patch+json"
_PAGE = 500


def connect(context: str | None = None) -> kubernetes.client.ApiClient:
    """A client from the kubeconfig, or from the pod's own account inside a cluster."""
    try:
        return kubernetes.config.new_client_from_config(context=context)
    except kubernetes.config.ConfigException as outside:
        configuration = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_incluster_config(client_configuration=configuration)
        except kubernetes.config.ConfigException:
            raise RefusedError(
                f"no cluster is configured ({outside}); set KUBECONFIG or name a context that exists"
            ) from outside
        return kubernetes.client.ApiClient(configuration)


class KubernetesCluster:
    """Nodes of a cluster and the jobs of one namespace; lists are paged, calls end after `timeout_s`."""

    def __init__(
        self, client: kubernetes.client.ApiClient, *, namespace: str = "default", timeout_s: float = 30.0
    ) -> None:
        self.namespace = namespace
        self._core = kubernetes.client.CoreV1Api(client)
        self._batch = kubernetes.client.BatchV1Api(client)
        self._timeout_s = timeout_s

    def nodes(self) -> list[Node]:
        """All nodes, with the GPUs that pods hold at this moment."""
        used: dict[str, int] = {}
        running = "status.phase!=Succeeded,status.phase!=Failed"
        for pod in self._list(self._core.list_pod_for_all_namespaces, field_selector=running):
            name = pod["spec"].get("nodeName", "")
            used[name] = used.get(name, 0) + _pod_gpus(pod["spec"])
        objects = self._list(self._core.list_node)
        return [_node(item, used.get(item["metadata"]["name"], 0)) for item in objects]

    def label(
        self, node: Node, labels: Mapping[str, str | None], annotations: Mapping[str, str | None] | None = None
    ) -> Node:
        """Set labels and annotations in one write, None removes."""
        metadata: dict[str, Any] = {"resourceVersion": node.version, "labels": dict(labels)}
        if annotations is not None:
            metadata["annotations"] = dict(annotations)
        return self._patch_node(node, {"metadata": metadata})

    def taint(self, node: Node, taints: Sequence[Taint]) -> Node:
        """Replace the whole list of taints."""
        rows = [{"key": t.key, "value": t.value, "effect": t.effect} for t in taints]
        return self._patch_node(node, {"metadata": {"resourceVersion": node.version}, "spec": {"taints": rows}})

    def submit(self, job: Job) -> Job:
        """Bring the job forward: absent, then held (suspended), then running; a name of another owner is a conflict."""
        try:
            self._call(self._batch.create_namespaced_job, self.namespace, job_object(job, self.namespace))
            return job
        except ConflictError:
            pass  # a job of this name is there: ours from an earlier try, or somebody else's
        for _ in range(10):
            found = self._call(self._batch.read_namespaced_job, job.run, self.namespace)
            if found["metadata"].get("labels", {}).get(OWNER) != job.owner:
                raise ConflictError(f"job {job.run} belongs to somebody else; choose another run name")
            if "deletionTimestamp" in found["metadata"]:
                raise ConflictError(
                    f"job {job.run} is being deleted; wait until it is gone and launch with a new owner"
                )
            held = bool(found["spec"].get("suspend"))
            if job.held or not held:
                return replace(job, held=held)
            version = found["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "spec": {"suspend": False}}
            try:
                self._call(self._batch.patch_namespaced_job, job.run, self.namespace, patch, _content_type=_MERGE)
                return job
            except ConflictError:  # its status moved; whether it is still ours is read again
                continue
        raise ConflictError(f"job {job.run} changes too fast to be started; launch again")

    def delete(self, job: Job) -> bool:
        """Delete the job after its pods; True once it is gone."""
        try:
            found = self._call(self._batch.read_namespaced_job, job.run, self.namespace)
        except MissingError:
            return True
        if found["metadata"].get("labels", {}).get(OWNER) != job.owner:
            return True
        if "deletionTimestamp" not in found["metadata"]:
            exact = {"preconditions": {"uid": found["metadata"]["uid"]}, "propagationPolicy": "Foreground"}
            try:
                self._call(self._batch.delete_namespaced_job, job.run, self.namespace, body=exact)
            except (MissingError, ConflictError):  # gone, or replaced by another: the next call sees which
                return False
        return False

    def owners(self) -> set[str]:
        """Owner ids of all jobs of the namespace, for `sweep`."""
        jobs = self._list(self._batch.list_namespaced_job, self.namespace)
        return {job["metadata"].get("labels", {}).get(OWNER, "") for job in jobs} - {""}

    def _patch_node(self, node: Node, patch: dict[str, Any]) -> Node:
        return _node(self._call(self._core.patch_node, node.name, patch, _content_type=_MERGE), node.used)

    def _list(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        token = None
        while True:
            page = self._call(function, *args, limit=_PAGE, **({"_continue": token} if token else {}), **options)
            items += page.get("items", ())
            token = page.get("metadata", {}).get("continue")
            if not token:
                return items

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
        return _call(function, *args, _preload_content=False, _request_timeout=self._timeout_s, **options)


class KubernetesQueues:
    """Kueue's ClusterQueues."""

    def __init__(
        self, client: kubernetes.client.ApiClient, *, version: str = "v1beta2", timeout_s: float = 30.0
    ) -> None:
        self._api = kubernetes.client.CustomObjectsApi(client)
        self._place = ("kueue.x-k8s.io", version, "clusterqueues")
        self._timeout_s = timeout_s

    def queues(self) -> list[dict[str, Any]]:
        """All ClusterQueues."""
        page = self._call(self._api.list_cluster_custom_object, *self._place)
        return list(page["items"])

    def replace(self, queue: dict[str, Any]) -> dict[str, Any]:
        """Write the whole object back; ConflictError if its resourceVersion is old."""
        return self._call(self._api.replace_cluster_custom_object, *self._place, queue["metadata"]["name"], queue)

    def _call(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        return _call(function, *args, _preload_content=False, _request_timeout=self._timeout_s)


def job_object(job: Job, namespace: str) -> dict[str, Any]:
    """The Indexed Job: one pod on each node that carries the owner's label."""
    labels = {RUN: job.run, OWNER: job.owner}
    taint = run_taint(job)
    alone = {"labelSelector": {"matchLabels": {OWNER: job.owner}}, "topologyKey": "kubernetes.io/hostname"}
    pod = {
        "restartPolicy": "Never",
        "nodeSelector": {OWNER: job.owner},
        "tolerations": [
            {"key": taint.key, "operator": "Equal", "value": taint.value, "effect": taint.effect},
            {"key": _GPU, "operator": "Exists"},
        ],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [alone]}},
        "containers": [
            {
                "name": "main",
                "image": job.image,
                "command": list(job.command),
                "resources": {"limits": {_GPU: str(job.gpus_per_node)}},
            }
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.run, "namespace": namespace, "labels": labels},
        "spec": {
            "suspend": job.held,
            "completionMode": "Indexed",
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": 0,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
    """Call the client for raw JSON, with its failures as our errors."""
    try:
        data = function(*args, **options).data
    except kubernetes.client.ApiException as error:
        raise _error(error) from error
    except urllib3.exceptions.HTTPError as error:
        raise UnreachableError(f"the API server gives no answer: {error}") from error
    try:
        answer = json.loads(data)
    except ValueError as error:
        raise UnreachableError(f"the API server's answer is not JSON: {data[:80]!r}; is a proxy in between?") from error
    return answer


def _error(error: kubernetes.client.ApiException) -> ClusterError:
    status = error.status or 0
    try:
        text = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        text = str(error.reason)
    message = f"{status}: {text}"
    if status == 404:
        return MissingError(message)
    if status == 409:
        return ConflictError(message)
    return RefusedError(message) if 400 <= status < 500 and status not in (408, 410, 429) else UnreachableError(message)


def _node(item: dict[str, Any], used: int) -> Node:
    metadata, spec, status = item["metadata"], item.get("spec", {}), item.get("status", {})
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    conditions = {row["type"]: row["status"] for row in status.get("conditions", ())}
    rows = spec.get("taints") or ()
    return Node(
        name=metadata["name"],
        version=metadata["resourceVersion"],
        gpus=int(status.get("allocatable", {}).get(_GPU, 0)),
        used=used,
        labels=labels,
        taints=tuple(Taint(key=row["key"], value=row.get("value", ""), effect=row["effect"]) for row in rows),
        faults=faults_from_marks(labels, annotations),
        ready=conditions.get("Ready") == "True",
        cordoned=bool(spec.get("unschedulable")),
    )


def _pod_gpus(spec: dict[str, Any]) -> int:
    """GPUs of a pod: its containers together, or its greediest init container."""

    def gpus(container: dict[str, Any]) -> int:
        resources = container.get("resources", {})
        return int(resources.get("requests", resources.get("limits", {})).get(_GPU, 0))

    together = sum(gpus(container) for container in spec.get("containers", ()))
    return max([together, *(gpus(container) for container in spec.get("initContainers", ()))])
