import math
from pathlib import Path

import pytest
from krea_infra.counters import Key, increase, read, read_dcgm, read_pci, read_ports

PAGE = """\
# HELP DCGM_FI_DEV_GPU_TEMP GPU temperature (in C).
# TYPE DCGM_FI_DEV_GPU_TEMP gauge
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1",pci_bus_id="00000000:17:00.0",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="node \\"a\\", left"} 61
DCGM_FI_DEV_GPU_TEMP{gpu="1",UUID="GPU-2",pci_bus_id="00000000:2A:00.0",device="nvidia1",modelName="NVIDIA H100 80GB HBM3",Hostname="node"} 84
# TYPE DCGM_FI_DEV_PCIE_REPLAY_COUNTER counter
DCGM_FI_DEV_PCIE_REPLAY_COUNTER{gpu="0",Hostname="node"} 12 1730000000000
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{gpu="0",Hostname="node"} 0.412
DCGM_FI_DEV_XID_ERRORS{gpu="1",Hostname="node"} NaN
DCGM_FI_DEV_SM_CLOCK{gpu="0",Hostname="node"} 1980
"""  # noqa: E501


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_ports(tmp_path: Path) -> None:
    port = "class/infiniband/mlx5_0/ports/1"
    files = {
        f"{port}/state": "4: ACTIVE\n",
        f"{port}/rate": "400 Gb/sec (4X NDR)\n",
        f"{port}/counters/symbol_error": "3\n",
        f"{port}/counters/port_xmit_data": "1000\n",
        f"{port}/counters/port_xmit_packets": "18446744073709551615\n",
        f"{port}/counters/multicast_rcv_packets": "N/A (not available)\n",
        f"{port}/hw_counters/rnr_nak_retry_err": "7\n",
        "class/infiniband/mlx5_1/ports/1/state": "1: DOWN\n",
    }
    values = read_ports(write(tmp_path, files))
    expected = {
        Key("port", "mlx5_0/1", "active"): 1,
        Key("port", "mlx5_0/1", "rate_gbps"): 400,
        Key("port", "mlx5_0/1", "symbol_error"): 3,
        Key("port", "mlx5_0/1", "port_xmit_bytes"): 4000,
        Key("port", "mlx5_0/1", "port_xmit_packets"): float(2**64 - 1),
        Key("port", "mlx5_0/1", "rnr_nak_retry_err"): 7,
        Key("port", "mlx5_1/1", "active"): 0,
    }
    assert values == expected


def test_a_file_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    counters = write(tmp_path, {"class/infiniband/m/ports/1/counters/symbol_error": "1"})
    (counters / "class/infiniband/m/ports/1/counters/link_downed").symlink_to("gone")
    (counters / "class/infiniband/m/ports/1/counters/folder").mkdir()
    assert set(read_ports(tmp_path)) == {Key("port", "m/1", "symbol_error")}
    assert read_ports(tmp_path / "nothing") == {}


def test_pci(tmp_path: Path) -> None:
    aer = "RxErr 0\nBadTLP 1\nRollover 2\nTimeout 40\nTOTAL_ERR_COR 43\n"
    gpu = {"vendor": "0x10de", "class": "0x030200", "current_link_width": "8", "max_link_width": "16"}
    files = {f"bus/pci/devices/0000:2a:00.0/{name}": text for name, text in gpu.items()}
    files |= {f"bus/pci/devices/0000:17:00.0/{name}": text for name, text in gpu.items()}
    files["bus/pci/devices/0000:2a:00.0/aer_dev_correctable"] = aer
    files |= {"bus/pci/devices/0000:01:00.0/vendor": "0x10de", "bus/pci/devices/0000:01:00.0/class": "0x040300"}
    values = read_pci(write(tmp_path, files))
    assert values[Key("gpu", "1", "pcie_replays_kernel")] == 42
    assert Key("gpu", "0", "pcie_replays_kernel") not in values
    assert values[Key("gpu", "0", "pcie_width")] == 8
    assert values[Key("gpu", "0", "pcie_width_most")] == 16
    assert {key.device for key in values} == {"0", "1"}


def test_dcgm_page_agrees_with_the_parser_of_prometheus() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    values = read_dcgm(PAGE)
    names = {"temperature_c": "DCGM_FI_DEV_GPU_TEMP", "tensor_active": "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"}
    names["pcie_replays"] = "DCGM_FI_DEV_PCIE_REPLAY_COUNTER"
    official = {
        (sample.name.removesuffix("_total"), sample.labels["gpu"]): sample.value
        for family in parser.text_string_to_metric_families(PAGE)
        for sample in family.samples
    }
    assert len(values) == 4
    for key, value in values.items():
        assert official[names[key.counter], key.device] == value


def test_read_joins_all_sources(tmp_path: Path) -> None:
    root = write(tmp_path, {"class/infiniband/m/ports/1/counters/symbol_error": "1", "dcgm.prom": PAGE})
    reading = read(5.0, sysfs=root, dcgm=root / "dcgm.prom")
    assert reading.at_s == 5.0
    assert {key.kind for key in reading.values} == {"gpu", "port"}
    assert len(read(5.0, sysfs=root).values) == 1


@pytest.mark.parametrize(
    ("values", "grown"),
    [([], 0), ([5], 0), ([5, 5, 9], 4), ([5, 9, 2], 6), ([5, 0, 0, 1], 1), ([math.inf, 1], 1)],
)
def test_increase_survives_resets(values: list[float], grown: float) -> None:
    assert increase(values) == grown
