from dataclasses import replace

import pytest
from krea_infra.interfaces import Instance, MissingError, Pod
from krea_infra.testing import MemoryProvider
from krea_infra.virtual import reconcile, step

POD = Pod(uid="u1", command=("train",))


def short(actions: tuple) -> list[tuple]:
    return [(a.kind, a.pod.uid if a.pod else None, a.instance, a.phase) for a in actions]


@pytest.mark.parametrize(
    ("pod", "instances", "expected"),
    [
        (POD, [], [("create", "u1", "", "pending")]),
        (POD, [("a", "running")], [("report", "u1", "a", "running")]),
        (replace(POD, phase="running"), [("a", "running")], []),
        (replace(POD, phase="running"), [("a", "failed")], [("report", "u1", "a", "failed")]),
        (replace(POD, phase="running"), [], [("report", "u1", "", "failed")]),
        (replace(POD, phase="failed"), [], []),
        (replace(POD, phase="succeeded"), [("a", "succeeded")], []),
        (replace(POD, deleting=True), [("a", "running")], [("delete", "u1", "a", "pending")]),
        (replace(POD, deleting=True), [], []),
        (None, [("a", "running")], [("delete", None, "a", "pending")]),
        (replace(POD, phase="running"), [("b", "running"), ("a", "running")], [("delete", "u1", "b", "pending")]),
    ],
)
def test_both_sides_are_brought_together(pod: Pod | None, instances: list, expected: list) -> None:
    found = [Instance(id=name, pod_uid="u1", phase=phase) for name, phase in instances]
    assert short(reconcile([pod] if pod else [], found)) == expected


def test_a_pod_lives_and_dies_at_the_provider() -> None:
    provider = MemoryProvider()
    assert step([POD], provider) == {"u1": "running"}
    running = replace(POD, phase="running")
    assert step([running], provider) == {}
    provider.set("i-0001", "failed")
    assert step([running], provider) == {"u1": "failed"}
    assert step([], provider) == {}
    assert provider.recover() == []
    with pytest.raises(MissingError):
        provider.exec("i-0001", ["ls"])


def test_a_lost_answer_starts_nothing_twice() -> None:
    class Lossy(MemoryProvider):
        def create(self, pod: Pod) -> str:
            super().create(pod)
            raise TimeoutError("the answer was lost")

    provider = Lossy()
    with pytest.raises(TimeoutError):
        step([POD], provider)
    assert step([POD], provider) == {"u1": "running"}
    assert provider.created == 1
