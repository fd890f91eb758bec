import pytest
from krea_infra.nodes import DEV, FAULTS, FAULTY, Fault, Job, Node, Taint, faults_from_marks, faults_to_text, unfit


@pytest.mark.parametrize("run", ["", "Upper", "-x", "x-", "a" * 53, "a.b", "a b"])
def test_run_names_are_dns_labels(run: str) -> None:
    with pytest.raises(ValueError, match="DNS label"):
        Job(run=run, owner="o", nodes=1, image="", command=())


def test_owner_and_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="label value"):
        Job(run="a", owner="a/b", nodes=1, image="", command=())
    with pytest.raises(ValueError, match="at least 1"):
        Job(run="a", owner="o", nodes=0, image="", command=())
    with pytest.raises(ValueError, match="negative"):
        Node(name="n", version="1", gpus=-1)
    with pytest.raises(ValueError, match="severity 'bad'"):
        Fault(kind="ib", severity="bad")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, None),
        ({"ready": False}, "not-ready"),
        ({"cordoned": True}, "cordoned"),
        ({"faults": (Fault(kind="ib", severity="fatal"),)}, "faulty"),
        ({"faults": (Fault(kind="ib", severity="suspect"),)}, None),
        ({"labels": {DEV: "pool"}}, "dev"),
        ({"taints": (Taint(key="maintenance"),)}, "tainted"),
        ({"taints": (Taint(key="maintenance", effect="PreferNoSchedule"),)}, None),
        ({"taints": (Taint(key="nvidia.com/gpu"),)}, None),
    ],
)
def test_unfit_names_the_reason(fields: dict, code: str | None) -> None:
    node = Node(**({"name": "n", "version": "1", "gpus": 8} | fields))
    reason = unfit(node, tolerate=["nvidia.com/gpu"])
    assert (reason.code if reason else None) == code


def test_faults_survive_the_way_through_an_annotation() -> None:
    faults = (
        Fault(kind="pcie", severity="fatal", gpus=(3, 5), reason='says "x"'),
        Fault(kind="ib", severity="suspect"),
    )
    assert faults_from_marks({}, {FAULTS: faults_to_text(faults)}) == faults
    assert faults_from_marks({FAULTY: "lemon"}, {})[0].severity == "fatal"
    assert faults_from_marks({FAULTY: "lemon"}, {})[0].kind == "lemon"
    assert faults_from_marks({}, {}) == ()


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"kind":"x"}]', '[{"kind":"x","severity":"odd","gpus":[],"reason":""}]']
)
def test_unreadable_faults_count_as_fatal(text: str) -> None:
    assert [fault.severity for fault in faults_from_marks({}, {FAULTS: text})] == ["fatal"]
