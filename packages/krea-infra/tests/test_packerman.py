import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_infra.nodes import DEV, OWNER, Fault, Node
from krea_infra.packerman import DevPod, pack, usable


def node(name: str, *faults: Fault, **fields: object) -> Node:
    return Node(**({"name": name, "version": "1", "gpus": 8, "faults": faults} | fields))  # type: ignore[arg-type]


def fault(kind: str, severity: str = "fatal", gpus: tuple[int, ...] = ()) -> Fault:
    return Fault(kind=kind, severity=severity, gpus=gpus)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "count"),
    [
        (node("a"), 8),
        (node("a", fault("ib")), 8),
        (node("a", fault("disk")), 0),
        (node("a", fault("pcie", gpus=(3,)), fault("xid", gpus=(3, 5))), 6),
        (node("a", fault("thermal", "degraded", gpus=(1,))), 8),
        (node("a", fault("ib"), ready=False), 0),
        (node("a", fault("ib"), cordoned=True), 0),
    ],
)
def test_usable_gpus(one: Node, count: int) -> None:
    assert usable(one) == count


def test_faulty_nodes_first_healthy_ones_only_when_allowed() -> None:
    nodes = [node("healthy"), node("ill", fault("ib")), node("hurt", fault("pcie", gpus=(0,)))]
    pods = [DevPod(name=f"pod-{i}", gpus=4) for i in range(4)]
    packing = pack(pods, nodes)
    assert sorted(packing.places.values()) == ["hurt", "ill", "ill"]
    assert [reason.code for reason in packing.left.values()] == ["no-room"]
    packing = pack(pods, nodes, overflow=True)
    assert sorted(packing.places.values()) == ["healthy", "hurt", "ill", "ill"]
    assert not packing.left


def test_running_pods_stay_and_count() -> None:
    nodes = [node("a", fault("ib"), used=3), node("b", fault("ib"))]
    packing = pack([DevPod(name="old", gpus=6, node="a"), DevPod(name="new", gpus=4)], nodes)
    assert packing.places == {"new": "b"}
    packing = pack([DevPod(name="old", gpus=2, node="a"), DevPod(name="new", gpus=5)], nodes)
    assert packing.places == {"new": "a"}  # 3 in use, 2 of them ours: 5 are free, and the node is open already


def test_claimed_nodes_are_never_used() -> None:
    claimed = node("a", fault("ib"), labels={OWNER: "run"})
    packing = pack([DevPod(name="p", gpus=1)], [claimed, node("b", labels={DEV: "pool"})], overflow=True)
    assert packing.places == {"p": "b"}
    assert "at most 0 are free" in pack([DevPod(name="p", gpus=1)], [claimed]).left["p"].text


def best(sizes: list[int], rooms: list[int]) -> int:
    """GPUs placed by trying every assignment."""
    most = 0
    for spots in itertools.product(range(-1, len(rooms)), repeat=len(sizes)):
        left = list(rooms)
        for size, spot in zip(sizes, spots, strict=True):
            if spot >= 0:
                left[spot] -= size
        if min(left) >= 0:
            most = max(most, sum(rooms) - sum(left))
    return most


def test_close_to_the_best_packing() -> None:
    draw, ours, optimum = random.Random(3), 0, 0
    for _ in range(120):
        lost = [draw.randrange(0, 6) for _ in range(3)]
        nodes = [node(f"n{i}", fault("pcie", gpus=tuple(range(k))), fault("ib")) for i, k in enumerate(lost)]
        pods = [DevPod(name=f"p{i}", gpus=draw.choice([1, 2, 4, 8])) for i in range(6)]
        size = {pod.name: pod.gpus for pod in pods}
        ours += sum(size[name] for name in pack(pods, nodes).places)
        optimum += best([pod.gpus for pod in pods], [usable(one) for one in nodes])
    assert ours >= 0.95 * optimum


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_no_node_is_ever_overfull(seed: int) -> None:
    draw = random.Random(seed)
    nodes = [node(f"n{i}", fault("pcie", gpus=tuple(range(draw.randrange(8))))) for i in range(5)]
    pods = [DevPod(name=f"p{i}", gpus=draw.randrange(0, 9)) for i in range(12)]
    packing = pack(pods, nodes)
    size = {pod.name: pod.gpus for pod in pods}
    for one in nodes:
        assert sum(size[name] for name, spot in packing.places.items() if spot == one.name) <= usable(one)
    assert set(packing.places) | set(packing.left) == set(size)
    assert pack(pods[::-1], [replace(n) for n in nodes[::-1]]).places == packing.places


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 GPUs"):
        DevPod(name="p", gpus=-1)
