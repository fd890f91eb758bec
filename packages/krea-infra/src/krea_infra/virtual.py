"""A virtual node: pods bound to it run at a provider, and both sides are brought together again and again.

There is no repair in place: what failed or vanished at the provider makes its pod failed, and whoever made the pod
replaces it (Krea 2 technical report, section on cluster systems). Nothing is kept in memory between two rounds, so a
restart adopts what is running: instances say which pod they belong to.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from krea_infra.interfaces import Instance, Phase, Pod, Provider

__all__ = ["Action", "reconcile", "step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing to do: create for a pod, delete an instance, or report the phase of a pod."""

    kind: Literal["create", "delete", "report"]
    pod: Pod | None = None
    instance: str = ""
    phase: Phase = "pending"


def reconcile(pods: Iterable[Pod], instances: Iterable[Instance]) -> tuple[Action, ...]:
    """What brings the provider's instances in line with the pods, and the pods' phases in line with the instances."""
    wanted = {pod.uid: pod for pod in pods}
    found: dict[str, Instance] = {}
    actions = []
    for instance in sorted(instances, key=lambda instance: instance.id):
        pod = wanted.get(instance.pod_uid)
        if pod is None or pod.deleting or pod.uid in found:  # nobody wants it, or a second one of a lost answer
            actions.append(Action(kind="delete", pod=pod, instance=instance.id))
        else:
            found[pod.uid] = instance
    for pod in wanted.values():
        if pod.deleting or pod.phase in ("succeeded", "failed"):
            continue
        if pod.uid in found:
            phase = found[pod.uid].phase
            if phase != pod.phase:
                actions.append(Action(kind="report", pod=pod, instance=found[pod.uid].id, phase=phase))
        elif pod.phase == "pending":
            actions.append(Action(kind="create", pod=pod))
        else:
            actions.append(Action(kind="report", pod=pod, phase="failed"))
    return tuple(actions)


def step(pods: Sequence[Pod], provider: Provider) -> dict[str, Phase]:
    """One round: start and end instances, and return the new phase of each pod whose phase changed, by uid.

    An error of the provider ends the round; the next one goes on from what is really there.
    """
    phases: dict[str, Phase] = {}
    for action in reconcile(pods, provider.recover()):
        if action.kind == "delete":
            provider.delete(action.instance)
        elif action.kind == "create" and action.pod is not None:
            provider.create(action.pod)
            phases[action.pod.uid] = "running"
        elif action.pod is not None:
            phases[action.pod.uid] = action.phase
    return phases
