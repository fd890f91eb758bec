"""Workers as pods: the Kubernetes Job whose pods join a map. krea-infra's clusters and any client take the object."""

import re
from collections.abc import Mapping
from typing import Any

from krea_data.krablet.pluck.keys import KEY_FILE
from krea_data.krablet.pluck.orders import CANNOT, DSNS

__all__ = ["job_object", "worker_command"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")
_KEYS = "/etc/krablet"


def worker_command(name: str, python: str = "python") -> tuple[str, ...]:
    """The command of a worker that joins the map `name`, such as for the `command` of a krea-infra Job.

    It needs `KRABLET_DSNS` and `KRABLET_KEY_FILE` in its environment.
    """
    return (python, "-m", "krea_data.krablet.pluck.worker", name)


def job_object(
    name: str,
    *,
    run: str,
    image: str,
    workers: int,
    secret: str,
    namespace: str = "default",
    requests: Mapping[str, str] | None = None,
    grace_s: int = 60,
) -> dict[str, Any]:
    """A Job of so many workers of the map `name`, called `run`.

    `secret` names a Secret with the keys `dsns` (one a line) and `pluck.key`. A pod that is lost gives nothing up: its
    range goes to another one when the lease ends, and the Job starts the pod again. A worker that cannot take part
    ends the Job, since all its pods are alike.
    """
    if not _NAME.fullmatch(run):
        raise ValueError(f"run {run!r} is no name for a Job; use 1 to 52 of a-z, 0-9 and '-', no '-' at an end")
    if workers < 1:
        raise ValueError(f"workers {workers} is below 1; a Job needs a pod")
    labels = {"app.kubernetes.io/name": "krablet-pluck", "krea.ai/run": run}
    cannot = {"action": "FailJob", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [CANNOT]}}
    evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    pod = _pod(name, image, secret, requests or {"cpu": "1", "memory": "1Gi"}) | {
        "terminationGracePeriodSeconds": grace_s
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": run, "namespace": namespace, "labels": labels},
        "spec": {
            "parallelism": workers,
            "completions": workers,
            "backoffLimit": 6 * workers,
            "podFailurePolicy": {"rules": [cannot, evicted]},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _pod(name: str, image: str, secret: str, requests: Mapping[str, str]) -> dict[str, Any]:
    """A pod with one worker; the key is mounted for its user only."""
    container = {
        "name": "worker",
        "image": image,
        "command": list(worker_command(name)),
        "env": [
            {"name": DSNS, "valueFrom": {"secretKeyRef": {"name": secret, "key": "dsns"}}},
            {"name": KEY_FILE, "value": f"{_KEYS}/pluck.key"},
        ],
        "resources": {"requests": dict(requests)},
        "volumeMounts": [{"name": "key", "mountPath": _KEYS, "readOnly": True}],
    }
    key = {"secretName": secret, "defaultMode": 0o400, "items": [{"key": "pluck.key", "path": "pluck.key"}]}
    return {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "key", "secret": key}],
    }
