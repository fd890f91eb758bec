from dataclasses import replace

import pytest
from krea_infra.counters import Reading
from krea_infra.health import RULES, faults, judge, mark
from krea_infra.nodes import FAULTY, Fault
from krea_infra.select import Request, select
from krea_infra.testing import MemoryCluster, replay


def gpus(counter: str, *series: list) -> dict:
    return {("gpu", str(index), counter): values for index, values in enumerate(series)}


def port(counter: str, values: list) -> dict:
    return {("port", "mlx5_0/1", counter): values}


def kinds(series: dict, every_s: float = 60.0) -> list[tuple[str, str, str]]:
    return [(v.device, v.rule.fault, v.rule.severity) for v in judge(replay(series, every_s=every_s))]


CALM = [3, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        # healthy
        (gpus("temperature_c", [61, 62, 63], [60, 61, 62]), []),
        (gpus("pcie_replays", CALM, CALM, CALM), []),
        (port("symbol_error", CALM), []),
        (port("active", [1, 1, 1]), []),
        # temperature: only if it stays, and compared with the neighbours
        (gpus("temperature_c", [79, 80, 79], [74, 76, 78]), [("0", "thermal", "degraded")]),
        (gpus("temperature_c", [79, 77, 79], [76, 76, 78]), []),
        (gpus("temperature_c", [70, 71, 70], [60, 61, 62], [60, 60, 60]), [("0", "thermal", "suspect")]),
        # PCIe: one that stands out, not a storm on all
        (gpus("pcie_replays", [0, 0, 150], CALM, CALM), [("0", "pcie", "fatal")]),
        (gpus("pcie_replays", [0, 0, 150], [0, 0, 140], [0, 0, 160]), []),
        (gpus("pcie_replays", [0, 10, 20], CALM, CALM), []),
        # XID: those that mean hardware
        (gpus("xid", [0, 79], [0, 0]), [("0", "xid", "fatal")]),
        (gpus("xid", [0, 31], [13, 13], [43, 0]), []),
        (gpus("xid", [0, 94]), [("0", "xid", "suspect")]),
        # memory
        (gpus("row_remap_failure", [0, 0], [1, 1]), [("1", "memory", "fatal")]),
        (gpus("rows_remapped_uncorrectable", [2, 3]), [("0", "memory", "degraded")]),
        (gpus("rows_remapped_uncorrectable", [2, 2]), []),
        # links
        (port("link_downed", [4, 5]), [("mlx5_0/1", "ib", "fatal")]),
        (port("link_downed", [4, 4]), []),
        (port("active", [0, 0]), [("mlx5_0/1", "ib", "fatal")]),
        (port("active", [0, 1]), []),
        (port("symbol_error", [0, 3, 6]), [("mlx5_0/1", "ib", "fatal")]),
        (port("link_error_recovery", [0, 6]), [("mlx5_0/1", "ib", "degraded")]),
        # a reset is no burst, and what comes after it counts
        (gpus("pcie_replays", [900, 0, 1], CALM, CALM), []),
        (gpus("pcie_replays", [900, 0, 150], CALM, CALM), [("0", "pcie", "fatal")]),
        (port("link_downed", [7, 0, 0]), []),
        (port("link_downed", [7, 0, 1]), [("mlx5_0/1", "ib", "fatal")]),
        # a reboot: everything is away for a while and starts again
        (gpus("temperature_c", [60, None, 61]) | port("symbol_error", [400, None, 0]), []),
        # a gap hides nothing that counters still show, and a gauge must have been seen
        (port("link_downed", [4, None, 5]), [("mlx5_0/1", "ib", "fatal")]),
        (gpus("temperature_c", [80, None, 80]), []),
        (gpus("temperature_c", [None, 80, 80]), []),
    ],
)
def test_rules(series: dict, expected: list) -> None:
    assert kinds(series) == expected


def test_rates_depend_on_time() -> None:
    series = port("port_rcv_errors", [0, 1000])
    assert kinds(series, every_s=60.0) == [("mlx5_0/1", "ib", "degraded")]
    assert kinds(series, every_s=200.0) == []


def test_slow_drift_of_one_gpu_is_seen_against_its_neighbours() -> None:
    drift = [60 + 0.5 * i for i in range(40)]
    steady = [60.0] * 40
    assert kinds(gpus("temperature_c", drift[:8], steady[:8], steady[:8])) == []
    assert kinds(gpus("temperature_c", drift[-8:], steady[-8:], steady[-8:])) == [("0", "thermal", "suspect")]


def test_every_rule_can_fire_alone() -> None:
    loud = {"level": [500, 500], "low": [0, 0], "rise": [0, 10**6], "rate": [0, 10**9], "burst": [0, 10**6]}
    for rule in RULES:
        values = [0, next(iter(rule.codes), 0)] if rule.measure == "code" else loud.get(rule.measure, [500, 500])
        series = {(rule.kind, "0", rule.counter): values}
        if rule.measure == "hotter":
            series[rule.kind, "1", rule.counter] = [1, 1]
        fired = judge(replay(series), [rule])
        assert [verdict.device for verdict in fired] == ["0"]
        assert rule.says in fired[0].reason


def test_readings_must_be_two_and_in_order() -> None:
    with pytest.raises(ValueError, match="1 readings show no change"):
        judge(replay(port("active", [1])))
    with pytest.raises(ValueError, match="out of order"):
        judge([Reading(at_s=2.0), Reading(at_s=2.0)])


def test_faults_name_gpus_and_reasons() -> None:
    series = gpus("xid", [0, 79], [0, 0], [0, 48]) | port("port_xmit_discards", [0, 10**6])
    found = faults(judge(replay(series)))
    assert [(f.kind, f.severity, f.gpus) for f in found] == [("xid", "fatal", (0, 2)), ("ib", "suspect", ())]
    assert "gpu 2: reported an error" in found[0].reason
    assert faults([]) == ()


def test_a_marked_node_is_not_selected_until_it_is_well(fleet, job) -> None:
    cluster = MemoryCluster(fleet(2))
    found = faults(judge(replay(port("link_downed", [0, 1]))))
    node = mark(cluster, cluster.nodes()[0], found)
    assert node.labels[FAULTY] == "ib"
    assert node.faults == found
    assert select(cluster.nodes(), Request(job=job(2))).reasons[node.name].code == "faulty"
    count = len(cluster.writes)
    assert mark(cluster, node, found) == node
    assert len(cluster.writes) == count
    well = mark(cluster, node, ())
    assert FAULTY not in well.labels
    assert replace(well, version="") == replace(fleet(2)[0], version="")
    hint = mark(cluster, well, [Fault(kind="ib", severity="suspect")])
    assert FAULTY not in hint.labels
    assert hint.faults
