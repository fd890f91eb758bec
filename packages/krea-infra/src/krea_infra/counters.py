"""Counters of GPUs and InfiniBand ports, read from files: sysfs trees and the text page of dcgm-exporter.

Everything takes the root of the tree, so that a recorded tree reads like a live one. A file that vanishes, says N/A or
refuses to be read is left out: an absent value is a fact, a wrong one is not.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

__all__ = ["Key", "Reading", "increase", "read", "read_dcgm", "read_pci", "read_ports"]

_WORDS = {"port_rcv_data": "port_rcv_bytes", "port_xmit_data": "port_xmit_bytes"}
"""Counted by the hardware in units of four bytes."""

_DCGM = {
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": "rows_remapped_correctable",
    "DCGM_FI_DEV_FB_USED": "memory_used_mib",
    "DCGM_FI_DEV_GPU_TEMP": "temperature_c",
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": "nvlink_crc_errors",
    "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": "nvlink_recoveries",
    "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": "nvlink_replays",
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": "pcie_replays",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": "row_remap_failure",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": "rows_remapped_uncorrectable",
    "DCGM_FI_DEV_XID_ERRORS": "xid",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "tensor_active",
}
_LINE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Key(NamedTuple):
    """One counter: the kind of device ("gpu" or "port"), which one ("3", "mlx5_0/1"), and the counter's name."""

    kind: str
    device: str
    counter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All counters of a node at one time, in seconds of any clock that runs forward."""

    at_s: float
    values: Mapping[Key, float] = field(default_factory=dict)


def read(at_s: float, *, sysfs: Path = Path("/sys"), dcgm: Path | None = None) -> Reading:
    """Everything that the sysfs tree and, if given, a saved page of dcgm-exporter tell."""
    values = read_ports(sysfs) | read_pci(sysfs)
    if dcgm is not None:
        values |= read_dcgm(dcgm.read_text())
    return Reading(at_s=at_s, values=values)


def read_ports(sysfs: Path) -> dict[Key, float]:
    """InfiniBand counters and hw_counters of all ports, `active` (1 or 0) and `rate_gbps`; data counters in bytes."""
    values: dict[Key, float] = {}
    for port in sorted((sysfs / "class" / "infiniband").glob("*/ports/*")):
        device = f"{port.parent.parent.name}/{port.name}"
        for file in sorted([*port.glob("counters/*"), *port.glob("hw_counters/*")]):
            value = _number(file)
            if value is not None:
                factor = 4 if file.name in _WORDS else 1
                values[Key("port", device, _WORDS.get(file.name, file.name))] = value * factor
        if state := _text(port / "state"):
            values[Key("port", device, "active")] = float(state.endswith("ACTIVE"))
        rate = _text(port / "rate").partition(" ")[0]
        if rate.replace(".", "", 1).isdigit():
            values[Key("port", device, "rate_gbps")] = float(rate)
    return values


def read_pci(sysfs: Path) -> dict[Key, float]:
    """PCIe link width and the kernel's count of replays of each NVIDIA GPU, numbered in order of bus address."""
    values: dict[Key, float] = {}
    folders = sorted((sysfs / "bus" / "pci" / "devices").glob("*"))
    gpus = [
        f for f in folders if _text(f / "vendor") == "0x10de" and _text(f / "class").startswith(("0x0300", "0x0302"))
    ]
    for index, folder in enumerate(gpus):
        for name, counter in (("current_link_width", "pcie_width"), ("max_link_width", "pcie_width_most")):
            if (value := _number(folder / name)) is not None:
                values[Key("gpu", str(index), counter)] = value
        rows = [line.split() for line in _text(folder / "aer_dev_correctable").splitlines()]
        counts = [
            int(row[1]) for row in rows if len(row) > 1 and row[0] in ("Rollover", "Timeout") and row[1].isdigit()
        ]
        if counts:
            values[Key("gpu", str(index), "pcie_replays_kernel")] = float(sum(counts))
    return values


def read_dcgm(page: str) -> dict[Key, float]:
    """The GPU fields that the health rules use, from the text page of dcgm-exporter."""
    values: dict[Key, float] = {}
    for line in page.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match["name"] not in _DCGM:
            continue
        labels = dict(_LABEL.findall(match["labels"] or ""))
        try:
            value = float(match["value"])
        except ValueError:
            continue
        if "gpu" in labels and value == value:  # not NaN
            values[Key("gpu", labels["gpu"], _DCGM[match["name"]])] = value
    return values


def increase(values: Iterable[float]) -> float:
    """How much a counter grew over successive readings; a fall means a reset, after which it counts from 0."""
    total, before = 0.0, None
    for value in values:
        if before is not None:
            total += value - before if value >= before else value
        before = value
    return total


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # the port or device went away, or its driver refuses
        return ""


def _number(file: Path) -> float | None:
    text = _text(file)
    return float(text) if text.lstrip("-").isdigit() else None
