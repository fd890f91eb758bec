import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_infra.nodes import DEV, OWNER, RUN, Fault, Job, Node, Taint
from krea_infra.select import Request, explain, select

JOB = Job(run="pretrain", owner="me", nodes=4, image="i", command=())
FATAL = (Fault(kind="pcie", severity="fatal", gpus=(3,), reason="burst"),)


def held(node: Node, owner: str = "me") -> Node:
    return replace(node, labels={**node.labels, RUN: "pretrain", OWNER: owner})


def test_every_node_that_is_not_taken_has_its_reason(fleet) -> None:
    good = fleet(6)
    bad = {
        "faulty": {"faults": FATAL},
        "claimed": {"labels": {OWNER: "somebody", RUN: "other"}},
        "dev": {"labels": {DEV: "alice"}},
        "cordoned": {"cordoned": True},
        "not-ready": {"ready": False},
        "tainted": {"taints": (Taint(key="maintenance", value="x"),)},
        "too-small": {"gpus": 7},
        "busy": {"used": 2},
        "refused": {"labels": {"gen": "old"}},
        "excluded": {},
    }
    nodes = good + [Node(**({"name": code, "version": "1", "gpus": 8} | fields)) for code, fields in bad.items()]
    plan = select(nodes, Request(job=JOB, refuse=("gen=old",), exclude=("excluded",), spares=1))
    assert plan.missing == 0
    assert len(plan.nodes) == 4
    assert len(plan.spares) == 1
    assert {code: plan.reasons[code].code for code in bad} == {code: code for code in bad}
    left = {node.name for node in nodes} - set(plan.nodes) - set(plan.spares)
    assert set(plan.reasons) == left
    text = explain(plan)
    assert "fatal pcie fault on GPU 3: burst" in text
    assert "claimed by run other" in text
    assert "7 GPUs can be allocated, 8 are needed" in text


def test_a_protected_claim_is_seen_even_without_its_label(fleet) -> None:
    nodes = fleet(4)
    nodes[0] = replace(nodes[0], taints=(Taint(key=OWNER, value="somebody"),))
    plan = select(nodes, Request(job=JOB))
    assert plan.missing == 1
    assert plan.reasons[nodes[0].name].code == "claimed"


def test_too_few_nodes_take_none_and_say_how_many_are_missing(fleet) -> None:
    plan = select(fleet(3), Request(job=JOB))
    assert (plan.nodes, plan.spares, plan.missing) == ((), (), 1)
    assert "1 nodes short" in explain(plan)
    assert {reason.code for reason in plan.reasons.values()} == {"fits"}
    assert select([], Request(job=JOB)).missing == 4


def test_fewer_spares_than_wished_are_accepted(fleet) -> None:
    assert len(select(fleet(5), Request(job=JOB, spares=3)).spares) == 1


def test_disliked_nodes_are_taken_only_when_needed(fleet) -> None:
    nodes = fleet(6)
    nodes[0] = replace(nodes[0], labels={**nodes[0].labels, "lemon": "yes"})
    nodes[1] = replace(nodes[1], faults=(Fault(kind="thermal", severity="suspect"),))
    request = Request(job=JOB, avoid=("lemon",))
    assert not {nodes[0].name, nodes[1].name} & set(select(nodes, request).nodes)
    assert {nodes[0].name, nodes[1].name} & set(select(nodes[:5], request).nodes)
    assert select(nodes[:5], replace(request, refuse=("lemon",))).missing == 0
    assert select(nodes[:4], replace(request, refuse=("lemon",))).missing == 1


def test_degraded_nodes_are_accepted_on_request_only(fleet) -> None:
    nodes = fleet(4, faults=(Fault(kind="thermal", severity="degraded"),))
    assert select(nodes, Request(job=JOB)).missing == 4
    assert select(nodes, Request(job=JOB, accept="degraded")).missing == 0


def test_the_smallest_rack_that_holds_all_is_used(fleet) -> None:
    nodes = [replace(n, labels={"rack": "abbbbcccccccc"[i]}) for i, n in enumerate(fleet(13))]
    plan = select(nodes, Request(job=JOB, topology=("rack",)))
    assert {n.labels["rack"] for n in nodes if n.name in plan.nodes} == {"b"}


def test_within_demands_one_domain_and_tells_who_is_outside(fleet) -> None:
    nodes = fleet(14, racks=4)
    assert select(nodes, Request(job=JOB, within="rack")).missing == 0
    plan = select(nodes, Request(job=replace(JOB, nodes=5), within="rack"))
    assert plan.missing == 1
    assert "rack=rack-" in explain(plan)
    plan = select(fleet(3), Request(job=JOB, within="block"))
    assert plan.missing == 4
    assert "has no label block" in explain(plan)


def test_nodes_held_already_are_kept(fleet) -> None:
    nodes = fleet(16)
    first = select(nodes, Request(job=JOB, topology=("rack",), spares=1))
    mine = {first.nodes[0], first.nodes[2]}
    again = select([held(n) if n.name in mine else n for n in nodes], Request(job=JOB, topology=("rack",), spares=1))
    assert mine <= set(again.nodes)
    assert set(again.nodes) == set(first.nodes)
    busy = [replace(held(n), used=8) if n.name in mine else n for n in nodes]
    assert mine <= set(select(busy, Request(job=JOB, topology=("rack",))).nodes)


@pytest.mark.parametrize("index", range(8))
def test_the_rack_of_a_held_node_is_gone_on_with(fleet, index: int) -> None:
    nodes = fleet(8)
    nodes[index] = held(nodes[index])
    plan = select(nodes, Request(job=JOB, topology=("rack",)))
    assert {n.labels["rack"] for n in nodes if n.name in plan.nodes} == {nodes[index].labels["rack"]}


def test_different_runs_prefer_different_nodes(fleet) -> None:
    nodes = fleet(64)
    chosen = {frozenset(select(nodes, Request(job=replace(JOB, run=f"run-{i}"))).nodes) for i in range(8)}
    assert len(chosen) == 8


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_packing_uses_as_few_racks_as_can_be_and_only_fitting_nodes(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    nodes = []
    for rack, size in enumerate(sizes):
        for slot in range(size):
            broken = data.draw(st.booleans())
            name = f"n{rack}-{slot}"
            faults = FATAL if broken else ()
            nodes.append(Node(name=name, version="1", gpus=8, labels={"rack": str(rack)}, faults=faults))
    count = data.draw(st.integers(1, 8))
    plan = select(nodes, Request(job=replace(JOB, nodes=count), topology=("rack",)))
    healthy = {n.name: n.labels["rack"] for n in nodes if not n.faults}
    assert plan.missing == max(0, count - len(healthy))
    assert set(plan.nodes) <= set(healthy)
    if not plan.missing:
        assert len(set(plan.nodes)) == count
        racks = set(healthy.values())
        for few in range(1, len(racks) + 1):  # the smallest number of racks that could do, by trying all
            if any(sum(r in some for r in healthy.values()) >= count for some in itertools.combinations(racks, few)):
                assert len({healthy[name] for name in plan.nodes}) == few
                break


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_snapshot_does_not_matter(seed: int, count: int, spares: int) -> None:
    draw = random.Random(seed)
    nodes = [
        Node(
            name=f"n{i}", version="1", gpus=8, labels={"rack": str(draw.randrange(4)), "block": str(draw.randrange(2))}
        )
        for i in range(20)
    ]
    request = Request(job=replace(JOB, nodes=count), spares=spares, topology=("block", "rack"))
    plan = select(nodes, request)
    draw.shuffle(nodes)
    assert select(nodes, request) == plan


def test_negative_spares_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 spares"):
        Request(job=JOB, spares=-1)
