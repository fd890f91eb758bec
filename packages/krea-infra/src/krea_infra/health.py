"""Rules: counters to verdicts, each with its reason.

A rule looks at one counter over a window of readings. What a threshold means is its `measure`:

level    the lowest value in the window is at least the limit: a gauge that stayed high
low      the highest value in the window is at most the limit: a gauge that stayed low
rise     the counter grew by at least the limit
rate     it grew faster than the limit, per second
burst    it grew by at least the limit and ten times as much as the median of its peers: one device stands out
hotter   its lowest value lies above the highest of the peers' median by at least the limit
code     the gauge named one of `codes`

Resets, reboots and gaps are harmless: growth is summed from reading to reading, and absent values count for nothing.
Thresholds: Krea 2 technical report, section on observability; network limits are in the range that NVSentinel uses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from krea_infra.counters import Key, Reading, increase
from krea_infra.interfaces import Cluster
from krea_infra.nodes import FAULTS, FAULTY, Fault, Node, Severity, faults_to_text

__all__ = ["RULES", "Rule", "Verdict", "faults", "judge", "mark"]

Measure = Literal["level", "low", "rise", "rate", "burst", "hotter", "code"]
_ORDER = {"suspect": 0, "degraded": 1, "fatal": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One counter, how to measure it, and what it means beyond the limit."""

    kind: Literal["gpu", "port"]
    counter: str
    measure: Measure
    limit: float = 0.0
    fault: str
    severity: Severity
    says: str
    codes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A rule that fired for a device; `value` is what was measured."""

    device: str
    rule: Rule
    value: float

    @property
    def reason(self) -> str:
        """One sentence: device, what happened, the figure."""
        return (
            f"{self.rule.kind} {self.device}: {self.rule.says} ({self.rule.counter} {self.rule.measure} {self.value:g})"
        )


def _gpu(counter: str, measure: Measure, limit: float, fault: str, severity: Severity, says: str) -> Rule:
    return Rule(kind="gpu", counter=counter, measure=measure, limit=limit, fault=fault, severity=severity, says=says)


def _port(counter: str, measure: Measure, limit: float, severity: Severity, says: str) -> Rule:
    return Rule(kind="port", counter=counter, measure=measure, limit=limit, fault="ib", severity=severity, says=says)


RULES: tuple[Rule, ...] = (
    _gpu("temperature_c", "level", 78, "thermal", "degraded", "stays so hot that it throttles"),
    _gpu("temperature_c", "hotter", 5, "thermal", "suspect", "is hotter than its neighbours"),
    _gpu("pcie_replays", "burst", 100, "pcie", "fatal", "repeats PCIe packets in a burst, as before a crash"),
    _gpu("pcie_replays_kernel", "burst", 100, "pcie", "fatal", "repeats PCIe packets in a burst, as before a crash"),
    _gpu("row_remap_failure", "level", 1, "memory", "fatal", "cannot replace a bad memory row"),
    _gpu("rows_remapped_uncorrectable", "rise", 1, "memory", "degraded", "lost a memory row"),
    _gpu("rows_remapped_correctable", "rise", 8, "memory", "suspect", "replaces memory rows often"),
    _gpu("nvlink_recoveries", "rise", 1, "nvlink", "degraded", "had to recover an NVLink"),
    # 48 double-bit error, 64 row remap failed, 74 NVLink, 79 fell off the bus, 95 uncontained memory error, 119 and 120
    # the GPU's own processor is stuck. 13, 31, 43 and 45 come from programs and say nothing about the GPU.
    Rule(kind="gpu", counter="xid", measure="code", codes=frozenset({48, 64, 74, 79, 95, 119, 120}),
         fault="xid", severity="fatal", says="reported an error that needs a reset or a repair"),
    Rule(kind="gpu", counter="xid", measure="code", codes=frozenset({63, 92, 94}),
         fault="xid", severity="suspect", says="reported a memory error that was contained"),
    _port("link_downed", "rise", 1, "fatal", "lost its link"),
    _port("active", "low", 0, "fatal", "is not active"),
    _port("link_error_recovery", "rate", 5 / 60, "degraded", "retrains its link"),
    _port("symbol_error", "rate", 120 / 3600, "fatal", "receives broken symbols"),
    _port("port_rcv_errors", "rate", 10, "degraded", "receives broken packets"),
    _port("port_xmit_discards", "rate", 100, "suspect", "throws packets away: congestion or a dead peer"),
    _port("excessive_buffer_overrun_errors", "rise", 1, "fatal", "overran its buffers"),
    _port("local_link_integrity_errors", "rise", 1, "fatal", "counts broken packets beyond the port's own limit"),
    _port("rnr_nak_retry_err", "rise", 1, "fatal", "gave up repeating a packet"),
)  # fmt: skip


def judge(readings: Sequence[Reading], rules: Sequence[Rule] = RULES) -> tuple[Verdict, ...]:
    """Every rule that fires over the readings, oldest first; a window of some minutes is meant.

    Give at least two readings; gauges need their limit in all of them.
    """
    if len(readings) < 2:
        raise ValueError(f"{len(readings)} readings show no change; give at least two, a minute or more apart")
    if any(after.at_s <= before.at_s for before, after in pairwise(readings)):
        raise ValueError("readings are out of order; give them oldest first, no two at the same time")
    series = _series(readings)
    verdicts = []
    for rule in rules:
        devices = {key.device: s for key, s in series.items() if (key.kind, key.counter) == (rule.kind, rule.counter)}
        for device in devices:
            if (value := _measure(rule, device, devices, len(readings))) is not None:
                verdicts.append(Verdict(device=device, rule=rule, value=value))
    return tuple(verdicts)


def faults(verdicts: Sequence[Verdict]) -> tuple[Fault, ...]:
    """Verdicts as faults of the node: one for each kind and severity, with the GPUs concerned and all reasons."""
    groups: dict[tuple[str, Severity], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.rule.fault, verdict.rule.severity), []).append(verdict)
    found = []
    for (kind, severity), group in groups.items():
        numbers = {int(v.device) for v in group if v.rule.kind == "gpu" and v.device.isdigit()}
        reason = "; ".join(verdict.reason for verdict in group)
        found.append(Fault(kind=kind, severity=severity, gpus=tuple(sorted(numbers)), reason=reason))
    return tuple(sorted(found, key=lambda f: (-_ORDER[f.severity], f.kind)))


def mark(cluster: Cluster, node: Node, found: Sequence[Fault]) -> Node:
    """Write the faults onto the node, or take them off if there are none; nothing is written if nothing changed.

    The label names the worst fault if it is more than a suspicion; the annotation holds all.
    """
    if tuple(found) == node.faults:
        return node
    worst = max(found, key=lambda fault: _ORDER[fault.severity], default=None)
    label = worst.kind if worst is not None and worst.severity != "suspect" else None
    return cluster.label(node, {FAULTY: label}, {FAULTS: faults_to_text(found) if found else None})


def _series(readings: Sequence[Reading]) -> dict[Key, list[tuple[float, float]]]:
    series: dict[Key, list[tuple[float, float]]] = {}
    for reading in readings:
        for key, value in reading.values.items():
            series.setdefault(key, []).append((reading.at_s, value))
    return series


def _measure(
    rule: Rule, device: str, devices: Mapping[str, Sequence[tuple[float, float]]], readings: int
) -> float | None:
    """The measured value if the rule fires, else None."""
    points = devices[device]
    values = [value for _, value in points]
    if rule.measure == "code":
        return next((value for value in values if value in rule.codes), None)
    if rule.measure in ("level", "low", "hotter") and len(values) < readings:
        return None  # a gap: the gauge was not seen all the time
    if rule.measure == "level":
        return min(values) if min(values) >= rule.limit else None
    if rule.measure == "low":
        return max(values) if max(values) <= rule.limit else None
    peers = [[value for _, value in other] for name, other in devices.items() if name != device]
    if rule.measure == "hotter":
        usual = median(max(other) for other in peers) if peers else values[0]
        return min(values) - usual if min(values) - usual >= rule.limit else None
    grown = increase(values)
    if rule.measure == "rate":
        elapsed_s = points[-1][0] - points[0][0]
        return grown / elapsed_s if elapsed_s and grown / elapsed_s > rule.limit else None
    if rule.measure == "burst":
        usual = median(increase(other) for other in peers) if peers else 0.0
        return grown if grown >= rule.limit and grown > 10 * usual else None
    return grown if grown >= rule.limit else None
