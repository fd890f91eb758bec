"""Sinks for metrics, all of the shape `(step, metrics) -> None`: console lines, JSON lines, Prometheus text.

Values are anything that `float` takes, a tensor of one element included.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat, TextIO

__all__ = ["Metrics", "Sink", "json_lines", "lines", "prometheus", "read_json_lines", "tee"]

Metrics = Mapping[str, SupportsFloat]
Sink = Callable[[int, Metrics], None]
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def lines(stream: TextIO | None = None) -> Sink:
    """One line a step for people, to standard error unless a stream is given."""

    def sink(step: int, metrics: Metrics) -> None:
        shown = "  ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
        print(f"step {step:6d}  {shown}", file=stream or sys.stderr, flush=True)

    return sink


def json_lines(path: Path) -> Sink:
    """Append one JSON object a step, as one write; a line that a crash cut short is cut off before the next one.

    Numbers that JSON does not know are written as "nan", "inf" and "-inf".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _cut_torn_line(path)

    def sink(step: int, metrics: Metrics) -> None:
        row = {"step": step} | {name: _plain(value) for name, value in metrics.items()}
        data = (json.dumps(row, allow_nan=False) + "\n").encode()
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            if os.write(handle, data) < len(data):
                os.ftruncate(handle, size)
                raise OSError(f"disk full: a line of {len(data)} bytes did not fit into {path}")
        finally:
            os.close(handle)

    return sink


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """What `json_lines` wrote, without a last line that a crash cut short."""
    *whole, _ = Path(path).read_bytes().split(b"\n")
    return [{name: _WORDS.get(value, value) for name, value in json.loads(line).items()} for line in whole]


def prometheus(path: Path, *, prefix: str = "krea", labels: Mapping[str, str] | None = None) -> Sink:
    """Replace a text file with the newest values, for the textfile collector of node_exporter; never half-written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    marks = ",".join(f'{_name(key)}="{_escape(value)}"' for key, value in (labels or {}).items())
    marks = f"{{{marks}}}" if marks else ""

    def sink(step: int, metrics: Metrics) -> None:
        rows = {_name(f"{prefix}_step"): float(step)}
        rows |= {_name(f"{prefix}_{name}"): float(value) for name, value in metrics.items()}
        text = "".join(f"# TYPE {name} gauge\n{name}{marks} {_prometheus(value)}\n" for name, value in rows.items())
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(text)
        os.replace(fresh, path)

    return sink


def tee(*sinks: Sink) -> Sink:
    """Give every sink the metrics, even if one fails; the failures are raised afterwards, together."""

    def sink(step: int, metrics: Metrics) -> None:
        failures = []
        for one in sinks:
            try:
                one(step, metrics)
            except Exception as error:  # noqa: BLE001  (raised below; the others must not lose the step)
                failures.append(error)
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(sinks)} sinks failed at step {step}", failures)

    return sink


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep:
            start = max(0, keep - 65536)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)


def _plain(value: SupportsFloat) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _prometheus(value: float) -> str:
    return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(str(value), repr(value))


def _name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_:]", "_", text)
    return f"_{name}" if name[:1].isdigit() else name


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
